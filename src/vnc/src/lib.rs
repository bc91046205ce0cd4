//! The VNC console of one VM: `ocivisor-vnc`, a program apart from shim and daemon.
//!
//! ```text
//!   shim ──frames──► console ──► terminal ──► picture ──► view ──► encoder ──► clients
//!     ▲                │                                                         │
//!     └────typed───────┴─────────────────── keys, mouse, paste ◄─────────────────┘
//! ```
//!
//! [`terminal`] is the emulator with what stands before it, [`picture`] what is to be seen, [`rfb`] the protocol,
//! [`server`] the loop that brings them together. How the program is started stands below.
//!
//! # Two processes
//!
//! The *server* faces the network and the guest: it parses what both send, so it must not be able to do anything with
//! it. It is a user without files, capabilities, or system calls that it does not need. The *keeper* is its parent and
//! stays root, because only root may go to a shim's socket wherever it comes up next; it parses next to nothing. See
//! [`keeper`], and [`gate`] for what passes between them.
//!
//! # How it is started
//!
//! By root, from a process that may end at any time afterwards. Nothing secret is in arguments or environment.
//!
//! ```text
//! ocivisor-vnc --name one-42                      what clients see; the VM's id
//!              --vm-dir R/vms/one-42              the record `vnc.json` goes there
//!              --socket R/sock/one-42/shim.sock   the shim's; it may come later, go, and come again
//!              --listen-fd N                      a TCP socket that listens already; once to four times
//!              --password-fd N | --no-password    a pipe with 1 to 8 bytes and then its end; one of the two
//!              --uid N --gid N                    whom the server becomes; not root
//!              [--status-fd N]                    a pipe that is told the outcome
//!              [--cgroup-procs PATH]...           files to write a 0 to before anything else
//! ```
//!
//! Descriptors are inherited by these numbers, above 2; all others are closed. Standard error is the journal: few
//! lines, never waited for. Standard input and output are not used and should be `/dev/null`. The status pipe gets one line and its end:
//!
//! ```text
//! ready PID START_TICKS     it serves; the record is written
//! error host TEXT           it does not, and nothing is left of it; the exit code is 1 then, 2 for a wrong command line
//! ```
//!
//! # How it lives and ends
//!
//! It depends on nobody: not on the daemon, whose restart it survives, nor on the shim or the guest. A guest that ended
//! is told on the screen, and its next boot is shown. So it is not a control pipe that ends it (which a restart of the
//! daemon would close), but SIGTERM to the keeper, which any later daemon finds by the [`record`]:
//!
//! ```text
//! R/vms/one-42/vnc.json   {"version":1,"vnc":{"pid":7,"start_ticks":100},"listen":"0.0.0.0:5942","password":true}
//! ```
//!
//! A record is believed if a process of that id and start time lives. The port is free when the keeper is gone: the
//! server dies with it, however it dies. The record is removed after SIGTERM, and left by SIGKILL.
//!
//! # Deliberately absent
//!
//! TLS and the security types of vendors (a tunnel's business: Guacamole, websockify, SSH), the guest's clipboard, sound,
//! files, JPEG, colour maps, more than one screen, threads.

pub mod args;
pub mod colour;
mod confine;
pub mod console;
mod filter;
pub mod font;
pub mod gate;
pub mod journal;
pub mod keeper;
pub mod keys;
pub mod mouse;
pub mod paste;
pub mod picture;
pub mod pointer;
pub mod portion;
pub mod record;
pub mod rfb;
pub mod screen;
pub mod server;
pub mod strings;
mod sys;
pub mod terminal;
