//! Calls recorded from OpenNebula, from bytes to plan.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use ocivisor_opennebula::vmm::{self, VmmCall};
use ocivisor_opennebula::{parse, progress};

struct Call {
    name: String,
    action: String,
    argv: Vec<String>,
    stdin: Vec<u8>,
}

fn recorded() -> Vec<Call> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/opennebula");
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut dirs: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    dirs.sort();
    let call = |dir: &PathBuf| {
        let text = fs::read_to_string(dir.join("argv")).unwrap();
        let mut argv: Vec<String> = serde_json::from_str(&text).unwrap();
        let script = argv.remove(0);
        Call {
            name: dir.file_name().unwrap().to_str().unwrap().to_owned(),
            action: script.rsplit('/').next().unwrap().to_owned(),
            argv,
            stdin: fs::read(dir.join("stdin")).unwrap(),
        }
    };
    dirs.iter().map(call).collect()
}

fn report(call: &Call) -> String {
    let mut text = String::new();
    match vmm::plan(&call.action, &call.argv, &call.stdin) {
        Ok(plan) => {
            let answer = plan.success();
            match &plan {
                VmmCall::Deploy { spec, .. } => writeln!(text, "{spec:#?}").unwrap(),
                other => writeln!(text, "{other:?}").unwrap(),
            }
            for note in plan.notes() {
                let line = note.line(plan.vm());
                assert_eq!(line, progress(plan.vm(), &note.to_string()));
                text += &line;
            }
            assert_eq!((answer.exit, answer.stderr.as_str()), (0, ""));
            writeln!(text, "stdout: {:?}", answer.stdout).unwrap();
        }
        Err(refusal) => {
            let answer = refusal.answer();
            assert_eq!((answer.exit, answer.stdout.as_str()), (1, ""));
            writeln!(text, "stderr: {:?}", answer.stderr).unwrap();
        }
    }
    text
}

#[test]
fn every_recorded_call_gives_the_known_plan() {
    let calls = recorded();
    assert_eq!(calls.len(), 43);
    for call in &calls {
        insta::assert_snapshot!(call.name.as_str(), report(call));
    }
}

#[test]
fn every_recorded_document_is_readable() {
    for call in recorded() {
        let vm = parse(&call.stdin).unwrap();
        assert!(call.argv.contains(&vm.id.to_string()), "{}", call.name);
    }
}

#[test]
fn the_fullest_vm_is_read_as_it_stands() {
    let calls = recorded();
    let call = calls.iter().find(|call| call.name == "1382-vmm-deploy");
    insta::assert_debug_snapshot!("vm-1382", parse(&call.unwrap().stdin).unwrap());
}

/// A cut document must never be taken for a whole one, wherever it is cut.
#[test]
fn a_cut_document_is_an_error_at_every_byte() {
    for call in recorded() {
        let whole = call.stdin.trim_ascii_end().len();
        let tail = whole.saturating_sub(300)..whole;
        for at in (0..whole).step_by(23).chain(tail) {
            let cut = &call.stdin[..at];
            assert!(parse(cut).is_err(), "{} at {at}", call.name);
            let plan = vmm::plan(&call.action, &call.argv, cut);
            let needs_it =
                ["deploy", "resize", "reconfigure", "attach_nic"].contains(&call.action.as_str());
            let by_argv_alone = call.action == "cancel" || (at == 0 && !needs_it);
            assert!(plan.is_err() || by_argv_alone, "{} at {at}", call.name);
        }
    }
}

#[test]
fn cancel_works_with_every_cut_document() {
    for call in recorded().iter().filter(|call| call.action == "cancel") {
        for at in (0..call.stdin.len()).step_by(101) {
            let plan = vmm::plan("cancel", &call.argv, &call.stdin[..at]).unwrap();
            assert_eq!(plan.vm().to_string(), call.argv[2]);
        }
    }
}
