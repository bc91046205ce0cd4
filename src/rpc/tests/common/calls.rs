//! One typed call of every method, over any transport.

use jsonrpsee::core::client::Error as RpcError;
use ocivisor_core::ids::{OpId, RequestId, VmId};
use ocivisor_rpc::api::ApiClient;
use ocivisor_schema::image::{CommitOptionsV1, ImportOptionsV1};
use ocivisor_schema::reply::DiskBackendV1;
use ocivisor_schema::{ChangeV1, Text, VmSpecV1};
use serde_json::Value;

/// Calls `method` with sample parameters; the result as JSON.
pub async fn call<C: ApiClient + Sync>(client: &C, method: &str) -> Result<Value, RpcError> {
    let id: Text<RequestId> = Text("8f14e45f-ceea".parse().unwrap());
    let vm: Text<VmId> = Text("one-42".parse().unwrap());
    let op = Text(OpId(7));
    let spec: VmSpecV1 =
        serde_json::from_str(include_str!("../../../schema/tests/golden/spec_full.json")).unwrap();
    macro_rules! value {
        ($call:expr) => {
            serde_json::to_value($call.await?).map_err(RpcError::from)
        };
    }
    match method {
        "vm.define" => value!(client.vm_define(id, spec)),
        "vm.start" => value!(client.vm_start(id, vm)),
        "vm.deploy" => value!(client.vm_deploy(id, spec)),
        "vm.shutdown" => value!(client.vm_shutdown(id, vm, Some(120_000), true, false)),
        "vm.destroy" => value!(client.vm_destroy(id, vm, true)),
        "vm.reboot" => value!(client.vm_reboot(id, vm, Some(30_000))),
        "vm.reset" => value!(client.vm_reset(id, vm)),
        "vm.change" => {
            let change = ChangeV1 { resources: Some(spec.resources), ..ChangeV1::default() };
            value!(client.vm_change(id, vm, change))
        }
        "vm.undefine" => value!(client.vm_undefine(id, vm)),
        "op.wait" => value!(client.op_wait(op, 60_000)),
        "op.get" => value!(client.op_get(op)),
        "op.cancel" => value!(client.op_cancel(op)),
        "vm.list" => value!(client.vm_list()),
        "vm.damaged" => value!(client.vm_damaged()),
        "vm.states" => value!(client.vm_states()),
        "vm.get" => value!(client.vm_get(vm)),
        "vm.stats" => value!(client.vm_stats(Some(vm))),
        "events.since" => value!(client.events_since(41, 100, 60_000)),
        "vm.console" => value!(client.vm_console(vm)),
        "vm.exec" => {
            let argv = vec!["/bin/sh".into(), "-l".into()];
            let env = vec!["TERM=xterm".into()];
            let dir = Some("/root".into());
            value!(client.vm_exec(vm, argv, env, None, dir, true, Some(60_000), false))
        }
        "vm.copy" => value!(client.vm_copy(vm, "out".into(), "/etc".into(), false, true, false)),
        "vm.log" => value!(client.vm_log(vm, 65_536)),
        "vm.why" => value!(client.vm_why(vm)),
        "image.import" => {
            let options = ImportOptionsV1 { partition: Some(1), ..ImportOptionsV1::default() };
            let name = Some("debian:12".into());
            value!(client.image_import(id, "oci:/srv/debian:12".into(), name, Some(options)))
        }
        "image.stat" => {
            value!(client.image_stat("docker://registry.example.com/debian:12".into()))
        }
        "image.lacking" => value!(client.image_lacking("oci:/srv/debian".into())),
        "image.push" => {
            let target = "docker://registry.example.com/debian:12";
            value!(client.image_push(id, "debian:12".into(), target.into()))
        }
        "image.save" => {
            let (format, path) = ("oci-archive".into(), "/srv/debian.oci".into());
            value!(client.image_save(id, vec!["debian:12".into()], format, path))
        }
        "image.export" => {
            let (format, path) = ("qcow2".into(), "/srv/web-1.qcow2".into());
            value!(client.image_export(id, None, Some(vm), format, Some(10 << 30), path))
        }
        "image.commit" => {
            let changes = vec!["CMD [\"/bin/sh\"]".into()];
            let options = CommitOptionsV1 { changes, ..CommitOptionsV1::default() };
            value!(client.image_commit(id, vm, "web:2".into(), Some(options)))
        }
        "image.build" => value!(client.image_build(id, "/srv/web".into(), "web:1".into())),
        "image.fsck" => value!(client.image_fsck(id, true)),
        "image.prune" => value!(client.image_prune(id, false, Some(604_800))),
        "image.tag" => value!(client.image_tag("debian:12".into(), "debian:stable".into())),
        "image.inspect" => value!(client.image_inspect("debian:12".into())),
        "image.history" => value!(client.image_history("debian:12".into())),
        "image.df" => value!(client.image_df()),
        "image.list" => value!(client.image_list()),
        "image.remove" => value!(client.image_remove("debian:12".into())),
        "disk.create" => value!(client.disk_create(
            "debian:12".into(),
            1 << 30,
            "/srv/web-1.img".into(),
            DiskBackendV1::Ext4
        )),
        "disk.adopt" => value!(client.disk_adopt("/srv/web-1.img".into())),
        "host.info" => value!(client.host_info()),
        "daemon.version" => value!(client.daemon_version()),
        other => panic!("no sample call of {other}: add one here"),
    }
}
