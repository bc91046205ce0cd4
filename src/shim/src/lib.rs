//! What is said to a shim, and how.
//!
//! One `ocivisor-shim` stays with each guest. It is the parent of the guest's first process, holds
//! its terminal, logs what it prints, and writes down how it ended. The daemon may be restarted,
//! upgraded or killed meanwhile; it finds the shim again by its socket.
//!
//! # Protocol
//!
//! A stream socket. The client sends one line, the shim answers one line; then the next line may
//! follow. A line has at most [`message::MAX_LINE`] bytes with its newline.
//!
//! ```text
//! ping                                  ok SHIMPID INITPID created|running|exited HOW
//! start                       (root)    ok
//! signal N                    (root)    ok
//! wait                                  exited HOW                  once the guest ended
//! master                      (root)    ok                          with the pty master as SCM_RIGHTS
//! attach rw|ro|take COLSxROWS [replay]  ok rw|ro                    then frames, both ways
//! quit                        (root)    ok                          only after the guest ended
//! anything that fails                   error CODE TEXT
//!
//! HOW is `code N`, `signal N` or `unknown`. `0x0` leaves the size of the terminal alone.
//! ```
//!
//! Who may connect is decided by the mode and group of the socket; lines marked (root) moreover
//! need a peer with the shim's own uid, because they go past the daemon's records.
//!
//! `attach rw` becomes `ok ro` if somebody else writes already; `take` detaches that one. `replay`
//! sends the tail of the log first. Frames are described in [`frame`].
//!
//! # Files
//!
//! `shim.json` says who shim and first process are ([`facts::Facts`]); `exit.json` says how the
//! guest ended ([`exit::ExitRecord`]) and is the truth about it: the shim ends once it is written.
//!
//! Absent on purpose: serde, threads, async, dependencies on other crates of ocivisor. All of this
//! is linked into a program that is resident once per guest.

pub mod client;
pub mod exit;
pub mod facts;
pub mod frame;
pub mod json;
pub mod message;
pub mod sys;
