//! Reads foreign bytes where they can do no harm: unpacks a layer, decompresses a stream, or reads a disk. Or becomes a
//! tool of the host's that works on foreign files (`tool`).
//!
//! Started by `ocivisor-datastore` (module `worker`) with three descriptors: 0 is request and stream, 1 the answer, 2
//! the layer's directory, or a pipe for what is decompressed or read. The files of a disk come with the request. It
//! begins as root of the host and splits before it reads a foreign byte:
//!
//! ```text
//! first process    joins the control groups, writes the id maps, makes the idmapped mount; then only the broker
//!    └─ confined   root of its own user namespace; the layer's directory, or an empty one, is its root directory; no
//!                  network, no other process, no capability but over the layer's files, a list of system calls
//! ```
//!
//! Each dies with the other, and both with whoever started them. What each step is for stands in `confine`.

mod confine;
mod filter;
#[cfg(feature = "faults")]
mod probe;
mod sys;
mod tool;

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;

use ocivisor_datastore::worker::{Answer, Hands, Job, Request, Unusable, attend, serve};

use confine::{Broker, Confined, Side};

fn main() -> ExitCode {
    // Descriptor 2 is the layer or the output, then nothing; whoever started us sees a panic by our end.
    std::panic::set_hook(Box::new(|_| {}));
    match run() {
        Ok(code) => code,
        // Nobody is there to hear it.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> std::io::Result<ExitCode> {
    sys::close_all_others()?;
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (request, files) = Request::receive(&input)?;
    // Closed when this process becomes another program.
    let answer = File::from(sys::out_of_the_way(std::io::stdout().as_fd())?);
    let said = match confine::enter(&request, &files) {
        Ok(Side::Broker(broker)) => {
            drop((input, files, answer));
            return Ok(wait(broker));
        }
        Ok(Side::Confined(Confined { root, output, marks })) => {
            let hands = Hands { input, root, output, files, marks };
            attempted(&request).unwrap_or_else(|| match request.job() {
                Job::Tool { .. } => tool::become_tool(&request, hands.files, hands.output.as_ref()),
                _ => serve(&request, hands),
            })
        }
        Err(error) => Answer::unusable(&error),
    };
    said.send(&answer)?;
    Ok(ExitCode::SUCCESS)
}

/// Sets marks until the confined process ends, and tells how it ended.
fn wait(Broker { child, layer, marks }: Broker) -> ExitCode {
    if let (Some(layer), Some(marks)) = (&layer, &marks) {
        attend(layer, marks);
    }
    drop(marks);
    child.wait()
}

/// Names the step that failed.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Unusable>;
}

impl<T, E: Into<std::io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, Unusable> {
        self.map_err(|source| Unusable { step, source: source.into() })
    }
}

/// What a test has this process try instead of its work.
#[cfg(feature = "faults")]
fn attempted(request: &Request) -> Option<Answer> {
    probe::attempt(request)
}

#[cfg(not(feature = "faults"))]
fn attempted(_: &Request) -> Option<Answer> {
    None
}
