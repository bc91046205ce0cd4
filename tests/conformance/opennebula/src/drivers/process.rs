//! Scripts run as processes of their own: on the front-end, or on a host by an ssh for them alone.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{Answer, Call, Drivers, lock};
use crate::place::FRONTEND;

impl Drivers {
    /// The environment that scripts have on the front-end, from the recordings; and a directory of no meaning.
    pub(super) fn on_frontend(&self, program: &Path) -> Command {
        let root = self.place.root();
        let home = root.join("var/lib/one");
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("HOME", &home)
            .env("LANG", "C.UTF-8")
            .env("LOGNAME", "oneadmin")
            .env("ONE_MAD_DEBUG", "")
            .env("PATH", format!("{}/bin:/usr/bin:/usr/local/bin:/usr/bin:/bin", root.display()))
            .env("PRIORITY", "19")
            .env("SHELL", "/bin/bash")
            .env("SHLVL", "0")
            .env("USER", "oneadmin")
            .envs(self.place.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(user) = self.place.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// A script on the front-end. Its answer ends when nobody holds its outputs any more.
    pub(super) fn local(
        &self,
        script: &Path,
        args: &[String],
        stdin: &[u8],
        token: &AtomicBool,
    ) -> Answer {
        self.intervene(&script.display().to_string());
        let mut command = self.on_frontend(script);
        command.args(args);
        let (code, out, err) = match command.spawn() {
            Ok(child) => match finish(child, stdin, token) {
                Some(result) => result,
                None => return Answer::Cancelled,
            },
            Err(e) => (127, String::new(), format!("{}: {e}", script.display())),
        };
        self.note(Call {
            on: FRONTEND.to_owned(),
            script: script.display().to_string(),
            args: args.to_vec(),
            stdin: stdin.to_vec(),
            answer: (code, out.clone(), err.clone()),
        });
        self.answer(code, &out, &err)
    }

    /// A script on a host in a command of its own: `resize`, `exec` and others. Its words are as they are to be read by
    /// the host's shell, and the whole is in single quotes of one here.
    pub(super) fn single(
        &self,
        host: &str,
        (script, words): (&str, String),
        args: &[&str],
        stdin: &[u8],
        token: &AtomicBool,
    ) -> Answer {
        self.intervene(script);
        let line =
            format!("ssh {host} 'if [ -x \"{script}\" ]; then {script} {words}; else exit 42; fi'");
        let mut command = self.on_frontend(Path::new("sh"));
        command.args(["-c", &line]);
        let result = command.spawn().ok().and_then(|child| finish(child, stdin, token));
        let Some((code, out, err)) = result else { return Answer::Cancelled };
        if code == 42 {
            self.place.sync(host);
        }
        // A shell that could not read the line did not call anything.
        if !err.contains("Syntax error") {
            self.note(Call {
                on: host.to_owned(),
                script: script.to_owned(),
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                stdin: stdin.to_vec(),
                answer: (code, out.clone(), err.clone()),
            });
        }
        self.answer(code, &out, &err)
    }

    /// A script of the monitoring driver's on a host, which begins or ends what monitors there (`one_im_ssh`).
    ///
    /// # Errors
    /// All that it said.
    pub fn monitor_client(
        &self,
        script: &str,
        args: &[&str],
        host: &str,
        stdin: &[u8],
    ) -> Result<String, String> {
        let path = format!("{}/im/{script}", self.place.remotes_of_hosts().display());
        let token = AtomicBool::new(false);
        match self.single(host, (&path, args.join(" ")), args, stdin, &token) {
            Answer::Success(text) => Ok(text),
            Answer::Failure(why) => {
                let said = lock(&self.trace).last().map(|call| call.answer.1.clone());
                Err(format!("{why}{}", said.unwrap_or_default()))
            }
            Answer::Cancelled => Err("cancelled".to_owned()),
        }
    }

    fn answer(&self, code: i32, out: &str, err: &str) -> Answer {
        match (code, out.trim()) {
            (0, "") => Answer::Success("-".to_owned()),
            (0, text) => Answer::Success(text.to_owned()),
            _ => Answer::Failure(self.message(err)),
        }
    }
}

fn reader(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks is at its end.
        let _broken = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Feeds a process in pieces and takes its answer; nothing if it was taken back.
fn finish(mut child: Child, stdin: &[u8], token: &AtomicBool) -> Option<(i32, String, String)> {
    let (out, err) = (reader(child.stdout.take()?), reader(child.stderr.take()?));
    let mut pipe = child.stdin.take()?;
    let bytes = stdin.to_vec();
    let feeder = std::thread::spawn(move || {
        for piece in bytes.chunks(1000) {
            // A script that refuses early need not read all.
            if pipe.write_all(piece).and_then(|()| pipe.flush()).is_err() {
                break;
            }
        }
    });
    let ended = ocivisor_tests::wait_for_option(ocivisor_tests::PATIENCE * 5, || {
        (token.load(Ordering::Relaxed) || child.try_wait().ok()?.is_some()).then_some(())
    });
    if ended.is_none() || token.load(Ordering::Relaxed) {
        let _ended = child.kill();
        let _ended = child.wait();
        return None;
    }
    let code = child.wait().ok()?.code().unwrap_or(-1);
    // Not before everybody who inherited the outputs closed them (§0.3).
    let (out, err) = (out.join().ok()?, err.join().ok()?);
    let _fed = feeder.join();
    Some((code, out, err))
}
