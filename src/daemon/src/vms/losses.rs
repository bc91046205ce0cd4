//! What a VM loses while it runs, kept in its record.

use std::sync::Arc;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::ports::Records as _;

use super::{Vms, blocking, lock};

impl Vms {
    /// Notes what a VM that runs has lost, with nothing else at work on it; false if it is known, or the VM does not run.
    ///
    /// # Errors
    /// `Conflict`: something is at work. It is not durable.
    pub async fn note_loss(&self, id: &VmId, loss: &str) -> Result<bool> {
        let Some(slot) = lock(&self.slots).get(id).cloned() else { return Ok(false) };
        let mut state = slot.state.lock().await;
        if state.running.is_some() {
            return Err(Error::new(ErrorKind::Conflict, format!("vm {id}: something is at work")));
        }
        let live = state.record.clone().filter(|record| record.state.is_live());
        let Some(mut record) = live.filter(|it| !it.losses.iter().any(|known| known == loss))
        else {
            return Ok(false);
        };
        record.note_loss(loss.to_owned());
        let (host, durable) = (Arc::clone(&self.host), record.clone());
        blocking(move || host.records.save(&durable)).await??;
        *lock(&slot.shown) = Some(record.clone());
        state.record = Some(record);
        Ok(true)
    }
}
