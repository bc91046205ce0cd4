//! Processors: which, how many, how busy.

use std::path::Path;

use crate::read_text;

/// Of /proc/cpuinfo.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Processors {
    /// The first one's name; some architectures have none.
    pub model: Option<String>,
    /// The fastest one's speed at the moment.
    pub mhz: Option<u64>,
}

pub(super) fn read(text: &str) -> Processors {
    let values = |name: &'static str| {
        text.lines().filter_map(move |line| {
            let (key, value) = line.split_once(':')?;
            (key.trim_end() == name).then(|| value.trim())
        })
    };
    let whole = |value: &str| value.split('.').next()?.parse().ok();
    Processors {
        model: values("model name").next().map(str::to_owned),
        mhz: values("cpu MHz").filter_map(whole).max(),
    }
}

/// The speed in MHz that the first processor can have, where its clock can be set.
pub(super) fn top_speed() -> Option<u64> {
    let path = "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq";
    let khz: u64 = read_text(Path::new(path), 64).ok()?.trim().parse().ok()?;
    Some(khz / 1000)
}

/// Of /proc/stat, in clock ticks since the host's boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Processors that are on.
    pub processors: u64,
    all: u64,
    idle: u64,
}

impl Times {
    pub(super) fn read(text: &str) -> Self {
        let mut times = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next().and_then(|name| name.strip_prefix("cpu")) {
                // user nice system idle iowait irq softirq steal; what follows is in user already (proc(5)).
                Some("") => {
                    let ticks: Vec<u64> =
                        words.map_while(|word| word.parse().ok()).take(8).collect();
                    times.all = ticks.iter().fold(0, |sum, n| sum.saturating_add(*n));
                    times.idle =
                        ticks.iter().skip(3).take(2).fold(0, |sum, n| sum.saturating_add(*n));
                }
                Some(_) => times.processors += 1,
                None => {}
            }
        }
        times
    }

    /// How much of the processors was free since then, in percent of one.
    #[must_use]
    pub fn free_since(&self, before: &Self) -> u64 {
        let all = self.all.saturating_sub(before.all);
        let idle = self.idle.saturating_sub(before.idle).min(all);
        let most = self.processors * 100;
        u64::try_from(u128::from(most) * u128::from(idle) / u128::from(all.max(1))).unwrap_or(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_speed_are_read() {
        let text = "processor\t: 0\nmodel name\t: A \"B\" C @ 2.90GHz\ncpu MHz\t\t: 2893.202\n\n\
                    processor\t: 1\nmodel name\t: other\ncpu MHz\t\t: 3100.000\n";
        let want = Processors { model: Some("A \"B\" C @ 2.90GHz".into()), mhz: Some(3100) };
        assert_eq!(read(text), want);
        assert_eq!(read("processor\t: 0\nBogoMIPS\t: 50.00\ncpu MHz: x\n"), Processors::default());
    }

    #[test]
    fn free_is_what_was_idle_of_what_passed() {
        let before = Times::read("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1\ncpu1 1\nintr 5\n");
        assert_eq!(before, Times { processors: 2, all: 1000, idle: 800 });
        let now = Times::read("cpu  200 0 100 900 200 0 0 0 9 9\ncpu0 1\ncpu1 1\n");
        assert_eq!(now.free_since(&before), 150);
        assert_eq!(now.free_since(&now), 0, "no time passed");
        assert_eq!(before.free_since(&now), 0, "counters of another boot");
        assert_eq!(Times::read("cpu x\n"), Times::default());
    }
}
