//! Where programs that stand for others ask: the recorder's scripts what to answer, `onevm` what oned knows.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::drivers::{Call, lock};
use crate::model::Model;
use crate::recording::RecordedCall;
use crate::sshd::ONEADMIN;
use crate::state::State;
use crate::template::Template;

/// What a program asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// A script of the recorder was called.
    Record {
        /// The machine.
        on: String,
        /// Its path.
        script: String,
        /// Its arguments.
        args: Vec<String>,
        /// What it read.
        stdin: Vec<u8>,
    },
    /// A command of OpenNebula's CLI.
    Show {
        /// Its name.
        program: String,
        /// Its arguments.
        args: Vec<String>,
    },
}

/// What is answered.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Exit status.
    pub exit: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Whoever answers.
#[derive(Debug, Clone)]
pub struct Desk {
    model: Arc<Mutex<Model>>,
    expected: Arc<Mutex<VecDeque<RecordedCall>>>,
    calls: Arc<Mutex<Vec<Call>>>,
    /// Whether a script waits for its answer, and that it need not any more.
    held: Arc<(Mutex<bool>, Condvar)>,
    root: String,
}

/// The socket, below the directory of all.
const SOCKET: &str = "desk.sock";

impl Desk {
    /// Opens a desk in that directory.
    ///
    /// # Panics
    /// The socket cannot be made.
    #[must_use]
    pub fn open(root: &Path, model: Arc<Mutex<Model>>) -> Self {
        let desk = Self {
            model,
            expected: Arc::default(),
            calls: Arc::default(),
            held: Arc::default(),
            root: root.display().to_string(),
        };
        let listener = UnixListener::bind(root.join(SOCKET)).unwrap();
        std::os::unix::fs::chown(root.join(SOCKET), Some(ONEADMIN), Some(ONEADMIN)).unwrap();
        let answering = desk.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answering = answering.clone();
                std::thread::spawn(move || answering.serve(stream));
            }
        });
        desk
    }

    /// What the recorder's scripts answer in the next step.
    pub fn expect(&self, calls: &[RecordedCall]) {
        *lock(&self.expected) = calls.iter().cloned().collect();
    }

    /// What they were called with since this was last asked, in the order in which they began.
    #[must_use]
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.calls))
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut line = String::new();
        let Ok(copy) = stream.try_clone() else { return };
        if BufReader::new(copy).read_line(&mut line).is_err() {
            return;
        }
        let reply = match serde_json::from_str(&line) {
            Ok(Question::Record { on, script, args, stdin }) => {
                let (reply, held) = self.answer(&script);
                let answer = (reply.exit, reply.out.clone(), reply.err.clone());
                lock(&self.calls).push(Call { on, script, args, stdin, answer });
                if held {
                    self.hold();
                }
                reply
            }
            Ok(Question::Show { program, args }) => self.show(&program, &args),
            Err(e) => Reply { exit: 1, err: e.to_string(), ..Reply::default() },
        };
        // Whoever asked may be gone.
        let _gone = stream.write_all(serde_json::to_string(&reply).unwrap_or_default().as_bytes());
    }

    fn hold(&self) {
        let (held, released) = &*self.held;
        let mut held = lock(held);
        *held = true;
        while *held {
            held = released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether a script waits for its answer.
    #[must_use]
    pub fn holds(&self) -> bool {
        *lock(&self.held.0)
    }

    /// It gets it.
    pub fn release(&self) {
        *lock(&self.held.0) = false;
        self.held.1.notify_all();
    }

    /// The next recorded answer of that script, and whether it is for later.
    fn answer(&self, script: &str) -> (Reply, bool) {
        let plain = script.replace(&self.root, "");
        if plain.ends_with("/monitor") {
            let out = "USED_MB=1024\nTOTAL_MB=102400\nFREE_MB=101376\n".to_owned();
            return (Reply { out, ..Reply::default() }, false);
        }
        let mut expected = lock(&self.expected);
        let at = expected.iter().position(|call| call.script == plain);
        let of_monitor = plain.contains("/im/");
        match at.and_then(|at| expected.remove(at)) {
            Some(call) => {
                let root = format!("{}/var/lib/one", self.root);
                let out = call.out.replace("/var/lib/one", &root);
                (Reply { exit: call.exit, out, err: call.err }, call.held)
            }
            // Where a scenario is not about monitoring its calls were not taken along.
            None if of_monitor => (Reply::default(), false),
            None => {
                let err = "nobody called it then".into();
                (Reply { exit: 1, err, ..Reply::default() }, false)
            }
        }
    }

    /// `oneimage update ID --append FILE`: more attributes, or others.
    fn append(&self, image: &str, file: &str) -> Reply {
        let mut model = lock(&self.model);
        let found = model.image(image).map(|image| image.id);
        let text = std::fs::read_to_string(file);
        let (Some(image), Ok(text)) = (found.and_then(|id| model.images.get_mut(&id)), text) else {
            return Reply { exit: 255, err: format!("no image {image}\n"), ..Reply::default() };
        };
        for (key, values) in Template::read(&text).drain() {
            image.template.take(&key);
            values.into_iter().for_each(|value| image.template.add(&key, value));
        }
        Reply::default()
    }

    fn show(&self, program: &str, args: &[String]) -> Reply {
        if let ("oneimage", [update, image, append, file]) = (program, args)
            && (update.as_str(), append.as_str()) == ("update", "--append")
        {
            return self.append(image, file);
        }
        let model = lock(&self.model);
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let plain: Vec<&str> =
            words.iter().filter(|word| !word.starts_with('-')).copied().collect();
        let found = match (program, plain.as_slice()) {
            ("onevm", ["show", id]) => id
                .parse()
                .ok()
                .filter(|id| model.vms.contains_key(id))
                .map(|id| model.vm_document(id)),
            ("onevm", ["list", ..]) => {
                let live = model.vms.values().filter(|vm| vm.state != State::Done);
                let all = live.map(crate::model::Vm::document).collect();
                Some(crate::xml::Element::of("VM_POOL", all))
            }
            ("oneimage", ["show", name]) => model.image(name).map(crate::model::Image::document),
            ("onedatastore", ["show", name]) => model.store(name).map(|store| {
                let of_it = model.images.values().filter(|image| image.store == store.id);
                let images: Vec<u32> = of_it.map(|image| image.id).collect();
                store.document(&images)
            }),
            _ => None,
        };
        match found {
            Some(document) => Reply { out: document.write() + "\n", ..Reply::default() },
            None => Reply {
                exit: 255,
                err: format!("the stand-in's {program} does not know {}\n", args.join(" ")),
                ..Reply::default()
            },
        }
    }
}

/// Asks a desk.
///
/// # Errors
/// Nobody is there.
pub fn ask(root: &Path, question: &Question) -> std::io::Result<Reply> {
    let mut stream = UnixStream::connect(root.join(SOCKET))?;
    let line = serde_json::to_string(question)? + "\n";
    stream.write_all(line.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
