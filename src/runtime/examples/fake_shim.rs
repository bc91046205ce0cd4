//! Stands in for `ocivisor-shim` in this crate's tests: says `ready`, logs the console, reaps the
//! guest, writes how it ended.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test program")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = words.iter().position(|word| word == name).unwrap_or_else(|| panic!("{name}"));
        words[at + 1].clone()
    };
    let fds = |what: &str| {
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        let mut fds: Vec<i32> = all
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        fds.sort_unstable();
        format!("{what}={fds:?}")
    };
    let open = fds("fds");
    assert_eq!((option("--status-fd").as_str(), option("--console-fd").as_str()), ("3", "4"));
    #[allow(unsafe_code, reason = "a test program")]
    // SAFETY: the runtime passes both.
    let (mut status, console) = unsafe { (File::from_raw_fd(3), File::from_raw_fd(4)) };
    let facts = format!(
        "ready pid={} init={} ticks={} start={} env={} {open}\n",
        std::process::id(),
        option("--init"),
        option("--start-ticks"),
        option("--start"),
        std::env::vars().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","),
    );
    status.write_all(facts.as_bytes()).unwrap();
    drop(status);
    let mut log = OpenOptions::new().create(true).append(true).open(option("--log")).unwrap();
    // Held open: else each close of the last slave, as by an init that opens its console anew for
    // each line, would look like the end.
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let _slave = rustix::pty::ioctl_tiocgptpeer(&console, flags).unwrap();
    rustix::io::ioctl_fionbio(&console, true).unwrap();
    let mut console = console;
    let init = rustix::process::Pid::from_raw(option("--init").parse().unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty()).unwrap();
    loop {
        let input = rustix::event::PollFlags::IN;
        let mut fds = [
            rustix::event::PollFd::new(&console, input),
            rustix::event::PollFd::new(&pidfd, input),
        ];
        rustix::event::poll(&mut fds, None).unwrap();
        let ended = !fds[1].revents().is_empty();
        let mut chunk = [0; 4096];
        while let Ok(n) = console.read(&mut chunk) {
            log.write_all(&chunk[..n]).unwrap();
        }
        if ended {
            break;
        }
    }
    let (_, ended) = rustix::process::waitpid(Some(init), rustix::process::WaitOptions::empty())
        .unwrap()
        .unwrap();
    let how = match (ended.exit_status(), ended.terminating_signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".into(),
    };
    let exit = File::create(format!("{}/exit.txt", option("--vm-dir"))).unwrap();
    exit.write_all_at(how.as_bytes(), 0).unwrap();
}
