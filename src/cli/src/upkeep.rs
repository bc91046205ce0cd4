//! `--restart`, `--health-…` and `--autostart`: what the host does for a VM unasked, on the command line.
//! Names and forms are those that users of Docker and Podman know.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use ocivisor_schema::spec::{HealthCheckV1, RestartV1, UpkeepV1};

use crate::connect::millis;
use crate::units;

/// Place in the order of starts with the host of who does not care.
const ANY_ORDER: &str = "100";

/// Options of `define`.
#[derive(Debug, Args)]
pub struct UpkeepOptions {
    /// Whether it is started again when it ends: no, on-failure, on-failure:TIMES, unless-stopped, always
    #[arg(long, value_name = "POLICY", conflicts_with = "file")]
    restart: Option<Policy>,
    /// Start it with the host; smaller numbers first, 100 without one
    #[arg(
        long,
        value_name = "ORDER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ANY_ORDER,
        conflicts_with = "file"
    )]
    autostart: Option<u16>,
    /// A command inside that succeeds while it works: for its /bin/sh, or a JSON array of strings
    #[arg(long, value_name = "COMMAND", conflicts_with = "file")]
    health_cmd: Option<String>,
    /// Time between two checks [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = units::duration, requires = "health_cmd")]
    health_interval: Option<Duration>,
    /// Time that a check may take [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = units::duration, requires = "health_cmd")]
    health_timeout: Option<Duration>,
    /// Time after its start during which failures do not count [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = units::duration, requires = "health_cmd")]
    health_start_period: Option<Duration>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "N", requires = "health_cmd")]
    health_retries: Option<u32>,
    /// What is done when it becomes unhealthy [default: none]
    #[arg(long, value_enum, value_name = "ACTION", requires = "health_cmd")]
    health_on_failure: Option<OnFailure>,
}

/// What is done about an unhealthy guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnFailure {
    /// It is told of
    None,
    /// It is ended; --restart says whether it is started again
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy(RestartV1);

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, most) = text.split_once(':').map_or((text, None), |(n, most)| (n, Some(most)));
        let policy = match (name, most) {
            ("no", None) => RestartV1::No,
            ("unless-stopped", None) => RestartV1::UnlessStopped,
            ("always", None) => RestartV1::Always,
            ("on-failure", None) => RestartV1::OnFailure { most: None },
            ("on-failure", Some(most)) => {
                let most = most.parse().map_err(|_| format!("{most:?} is no number of times"))?;
                RestartV1::OnFailure { most: Some(most) }
            }
            _ => return Err("is none of no, on-failure[:TIMES], unless-stopped, always".into()),
        };
        Ok(Self(policy))
    }
}

impl UpkeepOptions {
    /// As the API has it.
    ///
    /// # Errors
    /// The command begins as a JSON array and is none.
    pub fn to_spec(&self) -> Result<UpkeepV1, String> {
        let time = |time: Option<Duration>, default| time.map_or(default, millis);
        let health = self.health_cmd.as_deref().map(|command| {
            Ok::<_, String>(HealthCheckV1 {
                command: argv(command)?,
                interval_ms: time(self.health_interval, 30_000),
                timeout_ms: time(self.health_timeout, 30_000),
                retries: self.health_retries.unwrap_or(3),
                start_period_ms: time(self.health_start_period, 0),
                end: self.health_on_failure == Some(OnFailure::Kill),
            })
        });
        Ok(UpkeepV1 {
            restart: self.restart.map_or(RestartV1::No, |policy| policy.0),
            health: health.transpose()?,
            autostart: self.autostart,
        })
    }
}

fn argv(command: &str) -> Result<Vec<String>, String> {
    if command.trim_start().starts_with('[') {
        let array = serde_json::from_str(command);
        return array.map_err(|_| {
            "the health check begins with [ but is no JSON array of strings".to_owned()
        });
    }
    Ok(["/bin/sh", "-c", command].map(str::to_owned).into())
}

/// Lines of `info`: name and value. `restarts`: how many there were in a row.
pub fn describe(upkeep: &UpkeepV1, restarts: u32) -> Vec<(&'static str, String)> {
    let mut pairs = Vec::new();
    let policy = match upkeep.restart {
        RestartV1::No => None,
        RestartV1::OnFailure { most: None } => Some("on failure".to_owned()),
        RestartV1::OnFailure { most: Some(most) } => Some(format!("on failure, {most} times")),
        RestartV1::UnlessStopped => Some("unless stopped".to_owned()),
        RestartV1::Always => Some("always".to_owned()),
    };
    if let Some(policy) = policy {
        let so_far = if restarts == 0 { String::new() } else { format!("; {restarts} in a row") };
        pairs.push(("restart", format!("{policy}{so_far}")));
    }
    if let Some(order) = upkeep.autostart {
        pairs.push(("autostart", order.to_string()));
    }
    if let Some(health) = &upkeep.health {
        let command = health.command.join(" ");
        pairs.push(("health check", format!("{command}, every {}", seconds(health.interval_ms))));
    }
    pairs
}

fn seconds(millis: u64) -> String {
    if millis.is_multiple_of(1000) {
        format!("{} s", millis / 1000)
    } else {
        format!("{millis} ms")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[arg(long)]
        file: Option<String>,
        #[command(flatten)]
        options: UpkeepOptions,
    }

    fn of(args: &[&str]) -> Result<UpkeepV1, String> {
        let line = Line::try_parse_from([&["define"], args].concat()).map_err(|e| e.to_string())?;
        line.options.to_spec()
    }

    #[test]
    fn policies_are_those_of_docker() {
        for (text, restart) in [
            ("no", RestartV1::No),
            ("always", RestartV1::Always),
            ("unless-stopped", RestartV1::UnlessStopped),
            ("on-failure", RestartV1::OnFailure { most: None }),
            ("on-failure:5", RestartV1::OnFailure { most: Some(5) }),
        ] {
            assert_eq!(of(&["--restart", text]).unwrap().restart, restart);
        }
        for bad in ["", "never", "always:3", "on-failure:", "on-failure:-1", "on-failure:x"] {
            assert!(of(&["--restart", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_health_check_is_for_the_guests_shell_or_an_array() {
        let made = of(&["--health-cmd", "test -e /ok", "--health-interval", "500ms"]).unwrap();
        let health = made.health.unwrap();
        assert_eq!(health.command, ["/bin/sh", "-c", "test -e /ok"]);
        assert_eq!((health.interval_ms, health.timeout_ms, health.retries), (500, 30_000, 3));
        assert!(!health.end);
        let made = of(&["--health-cmd", "[\"a b\"]", "--health-on-failure", "kill"]).unwrap();
        let health = made.health.unwrap();
        assert_eq!((health.command, health.end), (vec!["a b".to_owned()], true));
        assert!(of(&["--health-cmd", "[1]"]).is_err());
        assert!(of(&["--health-retries", "2"]).is_err());
    }

    #[test]
    fn autostart_needs_no_number() {
        assert_eq!(of(&[]).unwrap(), UpkeepV1::default());
        assert_eq!(of(&["--autostart"]).unwrap().autostart, Some(100));
        assert_eq!(of(&["--autostart=7"]).unwrap().autostart, Some(7));
        assert!(of(&["--file", "x", "--autostart"]).is_err());
    }

    #[test]
    fn upkeep_is_described_in_words() {
        let upkeep = of(&["--restart", "on-failure:5", "--autostart=7", "--health-cmd", "true"]);
        let lines = describe(&upkeep.unwrap(), 2);
        let want = [
            ("restart", "on failure, 5 times; 2 in a row".to_owned()),
            ("autostart", "7".to_owned()),
            ("health check", "/bin/sh -c true, every 30 s".to_owned()),
        ];
        assert_eq!(lines, want);
        assert_eq!(describe(&UpkeepV1::default(), 0), []);
    }
}
