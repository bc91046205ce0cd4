//! Requests and answers: one line of text each. The grammar is in the [crate]'s comment.

use std::fmt;

use crate::exit::Exit;

/// Longest line with its newline, bytes.
pub const MAX_LINE: usize = 4096;

/// Size of a terminal in characters; zero in either leaves it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.cols, self.rows)
    }
}

/// What a viewer of the console wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look.
    Read,
    /// Type as well, unless somebody else does.
    Write,
    /// Type as well; who else does is detached.
    Take,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Who are you, how is the guest?
    Ping,
    /// Let the guest run.
    Start,
    /// Send a signal, 1 to 64, to the guest's first process.
    Signal(u8),
    /// Answer when the guest ended.
    Wait,
    /// Hand over a duplicate of the pty master.
    Master,
    /// Become a viewer of the console.
    Attach {
        /// What for.
        access: Access,
        /// Size of the viewer's terminal.
        size: Size,
        /// Whether to send the tail of the log first.
        replay: bool,
    },
    /// End, if the guest did.
    Quit,
}

impl Request {
    /// Reads a line without its newline.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let request = match words.next()? {
            "ping" => Self::Ping,
            "start" => Self::Start,
            "signal" => {
                let signal = words.next()?.parse().ok()?;
                if !(1..=64).contains(&signal) {
                    return None;
                }
                Self::Signal(signal)
            }
            "wait" => Self::Wait,
            "master" => Self::Master,
            "attach" => {
                let access = match words.next()? {
                    "ro" => Access::Read,
                    "rw" => Access::Write,
                    "take" => Access::Take,
                    _ => return None,
                };
                let (cols, rows) = words.next()?.split_once('x')?;
                let size = Size { cols: cols.parse().ok()?, rows: rows.parse().ok()? };
                let replay = match words.next() {
                    None => false,
                    Some("replay") => true,
                    Some(_) => return None,
                };
                Self::Attach { access, size, replay }
            }
            "quit" => Self::Quit,
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }
}

/// The line, without its newline.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ping => f.write_str("ping"),
            Self::Start => f.write_str("start"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Wait => f.write_str("wait"),
            Self::Master => f.write_str("master"),
            Self::Attach { access, size, replay } => {
                let access = match access {
                    Access::Read => "ro",
                    Access::Write => "rw",
                    Access::Take => "take",
                };
                write!(f, "attach {access} {size}{}", if *replay { " replay" } else { "" })
            }
            Self::Quit => f.write_str("quit"),
        }
    }
}

/// Where the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestState {
    /// Made, its first instruction not yet run.
    Created,
    /// Let go.
    Running,
    /// Ended.
    Exited(Exit),
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("created"),
            Self::Running => f.write_str("running"),
            Self::Exited(exit) => write!(f, "exited {exit}"),
        }
    }
}

impl GuestState {
    /// The state of that text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "created" => Some(Self::Created),
            "running" => Some(Self::Running),
            _ => Exit::parse(text.strip_prefix("exited ")?).map(Self::Exited),
        }
    }
}

/// Answer to [`Request::Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// Process id of the shim.
    pub shim: u32,
    /// Process id of the guest's first process.
    pub init: u32,
    /// How the guest is.
    pub state: GuestState,
}

impl fmt::Display for Pong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ok {} {} {}", self.shim, self.init, self.state)
    }
}

impl Pong {
    /// Reads the line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("ok ")?.splitn(3, ' ');
        let shim = words.next()?.parse().ok()?;
        let init = words.next()?.parse().ok()?;
        Some(Self { shim, init, state: GuestState::parse(words.next()?)? })
    }
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Not a request, or too long.
    BadRequest,
    /// Too many connections.
    Busy,
    /// Only for the shim's own uid.
    Denied,
    /// There is no terminal: it was lost with an earlier shim.
    NoConsole,
    /// The guest ended.
    Gone,
    /// The guest still runs.
    Runs,
    /// A system call failed.
    Host,
}

impl Code {
    const ALL: [Self; 7] = [
        Self::BadRequest,
        Self::Busy,
        Self::Denied,
        Self::NoConsole,
        Self::Gone,
        Self::Runs,
        Self::Host,
    ];

    /// The code on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::Busy => "busy",
            Self::Denied => "denied",
            Self::NoConsole => "no-console",
            Self::Gone => "gone",
            Self::Runs => "runs",
            Self::Host => "host",
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people, one line.
    pub text: String,
}

impl Refusal {
    /// A refusal with that text.
    #[must_use]
    pub fn new(code: Code, text: &str) -> Self {
        Self { code, text: text.replace(char::is_control, " ") }
    }

    /// Reads the line; `None` if it is no refusal.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("error ")?;
        let (code, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let code = Code::ALL.into_iter().find(|known| known.name() == code)?;
        Some(Self { code, text: text.to_owned() })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error {} {}", self.code.name(), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip() {
        let size = Size { cols: 80, rows: 24 };
        let attach = |access, replay| Request::Attach { access, size, replay };
        for (request, line) in [
            (Request::Ping, "ping"),
            (Request::Start, "start"),
            (Request::Signal(64), "signal 64"),
            (Request::Wait, "wait"),
            (Request::Master, "master"),
            (attach(Access::Write, false), "attach rw 80x24"),
            (attach(Access::Read, true), "attach ro 80x24 replay"),
            (attach(Access::Take, false), "attach take 80x24"),
            (Request::Quit, "quit"),
        ] {
            assert_eq!(request.to_string(), line);
            assert_eq!(Request::parse(line), Some(request));
        }
    }

    #[test]
    fn other_lines_are_no_requests() {
        for line in [
            "",
            " ",
            "PING",
            "ping ",
            "ping x",
            " ping",
            "signal",
            "signal 0",
            "signal 65",
            "signal -1",
            "signal 9 9",
            "attach",
            "attach rw",
            "attach rw 80",
            "attach xx 80x24",
            "attach rw 80x24 play",
            "attach rw 70000x1",
            "attach rw 80x24 replay x",
            "ping\0",
        ] {
            assert_eq!(Request::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn answers_round_trip() {
        for state in [
            GuestState::Created,
            GuestState::Running,
            GuestState::Exited(Exit::Code(7)),
            GuestState::Exited(Exit::Unknown),
        ] {
            let pong = Pong { shim: 1, init: 2, state };
            assert_eq!(Pong::parse(&pong.to_string()), Some(pong));
        }
        assert_eq!(Pong::parse("ok 1 2"), None);
        let refusal = Refusal::new(Code::NoConsole, "lost\nwith its shim");
        assert_eq!(refusal.to_string(), "error no-console lost with its shim");
        assert_eq!(Refusal::parse(&refusal.to_string()), Some(refusal));
        assert_eq!(Refusal::parse("ok"), None);
    }
}
