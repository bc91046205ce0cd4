//! What requests name on the host: each is found, and granted, before anything else is done.

use std::path::PathBuf;

use ocivisor_core::error::Result;
use ocivisor_core::spec::{Context, VmSpec};
use ocivisor_rpc::Extensions;
use ocivisor_schema::VmSpecV1;

use super::Daemon;
use crate::caller::Caller;
use crate::vms::blocking;

impl Daemon {
    pub(super) fn spec(&self, spec: VmSpecV1) -> Result<Box<VmSpec>> {
        let spec = VmSpec::try_from(spec)?;
        self.policy.grant(&spec)?;
        Ok(Box::new(spec))
    }

    pub(super) async fn resolve(&self, caller: &Extensions, path: PathBuf) -> Result<PathBuf> {
        let (caller, paths) = (Caller::of(caller), self.paths.clone());
        blocking(move || paths.resolve(caller, &path)).await?
    }

    /// The paths of the host in a spec, resolved.
    pub(super) async fn resolve_spec(&self, caller: &Extensions, spec: &mut VmSpec) -> Result<()> {
        spec.root.path = self.resolve(caller, spec.root.path.clone()).await?;
        for disk in &mut spec.disks {
            let (caller, paths, wish) = (Caller::of(caller), self.paths.clone(), disk.clone());
            *disk = blocking(move || paths.resolve_files(caller, wish)).await??;
        }
        self.resolve_context(caller, &mut spec.context).await
    }

    pub(super) async fn resolve_context(
        &self,
        caller: &Extensions,
        context: &mut Context,
    ) -> Result<()> {
        if let Some(disk) = context.disk.take() {
            context.disk = Some(self.resolve(caller, disk).await?);
        }
        Ok(())
    }
}
