//! `ocivisor-vnc`: the VNC console of one VM. The crate's library says what it is, how it is started and how it ends.

use std::io::{self, Write};
use std::process::ExitCode;

use ocivisor_vnc::args::Args;
use ocivisor_vnc::keeper;

fn main() -> ExitCode {
    match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => keeper::main(&args),
        Err(what) => {
            // Nobody may listen there; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "ocivisor-vnc: {what}");
            ExitCode::from(2)
        }
    }
}
