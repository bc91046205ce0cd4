//! The engine's other half: looks at the host and carries out what [`reconcile`] decides.

use crate::engine::{Engine, Hooks, Outcome, nics_of};
use crate::error::Result;
use crate::ids::{OpId, RequestId, VmId};
use crate::plan::Target;
use crate::ports::GuestView;
use crate::reconcile::{self, Decision, Observed};
use crate::state::{OpKind, Phase, Record, Request};

impl Engine<'_> {
    /// Clears what is left of a VM that nobody knows: no record, no NIC names.
    ///
    /// # Errors
    /// The first thing that could not be cleared; the rest was.
    pub fn clear_orphan(&self, id: &VmId) -> Result<()> {
        let ports = &self.ports;
        let mut result = ports.guests.drop_guest(id);
        result = result.and(ports.displays.drop_display(id));
        result = result.and(ports.cgroups.drop_cgroup(id));
        result = result.and(ports.storage.drop_disks(id));
        result = result.and(ports.storage.drop_root(id));
        result.and(ports.network.drop_namespaces(id))
    }

    /// Releases what a settled VM must not hold, without an operation. The record is not touched.
    ///
    /// # Errors
    /// The first thing that could not be released; the rest was.
    pub fn clear(&self, record: &Record) -> Result<()> {
        let nics = nics_of(record);
        let dropped = nics.iter().map(|nic| self.ports.network.drop_nic(record.id(), nic));
        let nics = dropped.fold(Ok(()), Result::and);
        nics.and(self.clear_orphan(record.id()))
    }

    /// Looks at the host for [`reconcile::decide`]; `remains` says whether anything of the VM was
    /// seen by the ports' `observe_*`.
    ///
    /// # Errors
    /// The guest or its display cannot be observed.
    pub fn observe(&self, record: &Record, remains: bool) -> Result<Observed> {
        let facts = record.guest.as_ref();
        let guest = self.ports.guests.observe_guest(record.id(), facts)?;
        let boot = self.ports.clock.host_boot();
        let restart = record.op.as_ref().is_some_and(|op| op.request.kind() == OpKind::Restart);
        let made_in = match facts {
            Some(facts) => Some(&facts.host_boot),
            // Of an earlier boot of the host it has had no turn in this one.
            None => restart.then_some(&record.tally.host_boot),
        };
        let shown = match &record.spec.graphics {
            Some(graphics) => self.ports.displays.observe_display(record.id(), graphics)?,
            None => true,
        };
        Ok(Observed {
            guest,
            remains: remains || guest != GuestView::Absent,
            rebooted: made_in.is_some_and(|made_in| *made_in != boot),
            at: self.ports.clock.now(),
            shown,
        })
    }

    /// Brings record and host together after a crash, a reboot of the host, or the end of a guest
    /// or its shim. A [`Decision::Collect`] or [`Decision::Reboot`] becomes the operation `op`.
    pub fn reconcile(
        &self,
        mut record: Record,
        observed: Observed,
        op: OpId,
        hooks: &dyn Hooks,
    ) -> Outcome {
        let lives = observed.runs();
        let decision = reconcile::decide(&record, observed);
        match decision {
            Decision::Nothing => Outcome::Settled(Box::new(record), Ok(())),
            Decision::Adopt => {
                let adopted = self.adopt(&mut record).and_then(|()| self.save(&mut record));
                let shown = self.show(&record);
                Outcome::Settled(Box::new(record), adopted.and(shown))
            }
            Decision::Show => {
                let shown = self.show(&record);
                Outcome::Settled(Box::new(record), shown)
            }
            Decision::Clear => {
                let cleared = self.clear(&record);
                Outcome::Settled(Box::new(record), cleared)
            }
            Decision::Collect | Decision::Reboot => {
                let before = record.clone();
                let id = record.id().clone();
                let request = match decision {
                    Decision::Reboot => Request::Reset,
                    _ => Request::Collect,
                };
                let request_id = own_request_id(request.kind(), op);
                match self.begin(Some(record), &id, request, request_id, op) {
                    Ok(record) => self.carry_out(record, hooks),
                    Err(error) => Outcome::Settled(Box::new(before), Err(error)),
                }
            }
            Decision::Resume => self.carry_out(record, hooks),
            Decision::FinishBoot => {
                let Some(op) = record.op.clone() else {
                    return Outcome::Settled(Box::new(record), Ok(()));
                };
                match self.adopt(&mut record).and_then(|()| self.show(&record)) {
                    Ok(()) => self.commit(record, &op, Target::Running, hooks),
                    Err(error) => {
                        self.tell_failure(&record, &op, None, &error, hooks);
                        self.undo(record, &op, error, hooks)
                    }
                }
            }
            Decision::Undo(error) => match record.op.clone() {
                Some(cut_off) if matches!(cut_off.request, Request::Change(_)) && !lives => {
                    // Nobody is there to obey the old wish; then the end of the guest is seen to.
                    if cut_off.phase == Phase::Doing {
                        self.tell_failure(&record, &cut_off, None, &error, hooks);
                    }
                    match self.settle_failed(record, &cut_off, error, hooks) {
                        Outcome::Settled(record, _) if record.op.is_none() => {
                            self.reconcile(*record, observed, op, hooks)
                        }
                        other => other,
                    }
                }
                Some(op) => self.go_back(record, &op, error, hooks),
                None => Outcome::Settled(Box::new(record), Ok(())),
            },
        }
    }

    fn adopt(&self, record: &mut Record) -> Result<()> {
        let Some(facts) = record.guest.clone() else {
            return Ok(());
        };
        let adoption = self.ports.guests.adopt_guest(&record.spec, &facts)?;
        record.guest = Some(adoption.facts);
        for loss in adoption.losses {
            record.note_loss(loss);
        }
        Ok(())
    }
}

/// Request id of the daemon's own operation.
fn own_request_id(kind: OpKind, op: OpId) -> RequestId {
    // `collect-op-7` is within the rules of request ids, whatever the number.
    #[expect(clippy::expect_used, reason = "printable ASCII without blanks by construction")]
    format!("{kind}-{op}").parse().expect("a valid request id")
}
