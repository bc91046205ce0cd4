//! What is compared with a recording: how users are answered, calls, where VMs and images end.

use super::table::Turn;
use super::{Live, failing};
use crate::drivers::Call;
use crate::model::ImageState;
use crate::recording::{RecordedCall, Step};
use crate::replay::left_and_hosts;
use crate::state::{Lcm, State};

/// A call: the machine, the script, its arguments.
type Words = (String, String, Vec<String>);

impl Live {
    pub(super) fn compare_reply(
        &mut self,
        step: &Step,
        turn: &Turn,
        reply: &Result<String, String>,
    ) {
        let wanted = turn.answers.map(str::to_owned).or_else(|| step.refused.clone());
        let same = match (reply, &wanted) {
            (Err(said), Some(wanted)) => {
                said.starts_with(recorded(wanted)) || wanted.starts_with(said.as_str())
            }
            (Ok(said), None) => step.prints.is_none() || step.prints.as_ref() == Some(said),
            _ => false,
        };
        if !same {
            let prints = &step.prints;
            self.differences.push(format!("answered {reply:?}, recorded {wanted:?} {prints:?}"));
        }
    }

    /// The recorded calls, in the words that they have here, and whether each is to fail.
    fn expected(&self, step: &Step, turn: &Turn) -> Vec<(Words, bool)> {
        if let Some((_, calls)) = turn.asked {
            let words = |call: &&str| call.split(' ').map(str::to_owned).collect::<Vec<_>>();
            let call = |words: Vec<String>| (words[0].clone(), words[1].clone(), words[2..].into());
            let calls = calls.iter().map(words).map(call);
            return calls.map(|call| (call, turn.refuses.is_some())).collect();
        }
        let mut calls: Vec<&RecordedCall> = step.calls.iter().collect();
        if turn.whole {
            calls.extend(&self.others);
        }
        if let Some(script) = turn.refuses {
            let last = calls.iter().position(|call| call.script.ends_with(script));
            calls.truncate(last.map_or(calls.len(), |last| last + 1));
        }
        calls.retain(|call| turn.spares.is_none_or(|script| !call.script.ends_with(script)));
        let vm = step.vms.first().map_or(0, |vm| vm.0);
        let names = self.called.get(&vm).map(Vec::as_slice).unwrap_or_default();
        let call = |call: &RecordedCall| {
            let mut words = call.args.clone();
            if turn.cold.is_some() {
                words = cold_words(&call.script, words);
            }
            let words = self.joined(words).into_iter();
            let mut args: Vec<String> =
                words.map(|arg| self.unnumbered(&self.own_word(&arg))).collect();
            if args.first().is_some_and(|first| names.contains(first)) {
                args[0] = format!("one-{vm}");
            }
            ((call.call.clone(), cold_script(&call.script, turn), args), call.exit != 0)
        };
        let mut expected: Vec<_> = calls.into_iter().map(call).collect();
        if turn.whole {
            expected.iter_mut().for_each(|(_, fails)| *fails = false);
        }
        if let (true, Some((_, fails))) =
            (turn.whole || turn.refuses.is_some(), expected.last_mut())
        {
            *fails = true;
        }
        if let (Some(script), Some(((on, last, args), _))) = (turn.undone, expected.last().cloned())
        {
            let dir = last.rsplit_once('/').map_or("", |(dir, _)| dir);
            expected.push(((on, format!("{dir}/{script}"), args), false));
        }
        let made = expected.first().map(|(call, _)| call);
        let back = turn.taken_back.zip(made).and_then(|(script, made)| taken_back(script, made));
        expected.extend(back.map(|call| (call, false)));
        // What was restored is not undone if that fails; what was booted is.
        let restored = |call: &&RecordedCall| call.script.ends_with("/restore");
        let back = step.calls.iter().find(restored).filter(|_| turn.cold.is_some());
        if let (Some(call), true) =
            (back, failing(step).is_some_and(|c| !c.script.contains("/tm/")))
        {
            let pre = step.calls.iter().find(|call| call.script.ends_with("/pre"));
            let clean = pre.map(|pre| pre.script.replace("/pre", "/clean")).unwrap_or_default();
            expected.push(((call.call.clone(), clean, vec![call.call.clone()]), false));
        }
        expected
    }

    /// A word of a recording as it is here.
    fn own_word(&self, arg: &str) -> String {
        match arg.strip_prefix("frontend:") {
            // What has a colon is no path of a machine.
            Some(path) => match self.sources.get(path) {
                Some(own) if own.contains(':') => own.clone(),
                Some(own) => format!("frontend:{own}"),
                None => arg.to_owned(),
            },
            None => match arg.split_once(":'") {
                // A file with its name.
                Some((path, name)) if self.sources.contains_key(path) => {
                    format!("{}:'{name}", self.sources[path])
                }
                _ => self.sources.get(arg).cloned().unwrap_or_else(|| arg.to_owned()),
            },
        }
    }

    /// The recorder named an image with a blank in it, which broke it in two.
    fn joined(&self, words: Vec<String>) -> Vec<String> {
        let mut joined: Vec<String> = Vec::new();
        for word in words {
            let whole = joined.last().map(|last| format!("{last} {word}"));
            let known = |whole: &String| {
                let path = whole.strip_prefix("frontend:").unwrap_or(whole);
                self.sources.contains_key(path)
            };
            if let Some(whole) = whole.filter(known) {
                joined.pop();
                joined.push(whole);
            } else {
                joined.push(word);
            }
        }
        joined
    }

    fn unnumbered(&self, word: &str) -> String {
        match word.rsplit_once("/deployment.") {
            Some((dir, _)) if self.renumbered => format!("{dir}/deployment.*"),
            _ => word.to_owned(),
        }
    }

    pub(super) fn compare_calls(&mut self, step: &Step, turn: &Turn) {
        let place = &self.cloud.oned.drivers.place;
        let seen = self.cloud.oned.drivers.take_calls();
        let plain = |call: &Call| {
            let args = call.words(place);
            let args = args.iter().map(|arg| self.unnumbered(arg));
            (call.on.clone(), place.plain(&call.script), args.collect())
        };
        let (mut ours, mut answers): (Vec<Words>, Vec<_>) = (vec![], vec![]);
        // Neither shell commands nor what is asked now and then were recorded.
        let told = step.calls.iter().any(|call| call.script.contains("/im/"));
        let recorded = |call: &&Call| {
            !call.script.starts_with("/bin/")
                && !call.script.ends_with("/monitor")
                && (told || !call.script.contains("/im/"))
        };
        for call in seen.iter().filter(recorded) {
            ours.push(plain(call));
            answers.push(&call.answer);
        }
        // What a datastore's driver named an image is told to others.
        for (call, (_, out, _)) in step.calls.iter().zip(&answers) {
            // Of a data block the whole answer is its name.
            let named = match call.script.ends_with("/mkfs") {
                true => Some(call.out.trim()).filter(|named| !named.is_empty()),
                false => call.out.split_whitespace().next(),
            };
            let words = named.zip(out.split_whitespace().next());
            if let Some((named, own)) = words.filter(|_| call.script.contains("/datastore/")) {
                self.sources.insert(named.to_owned(), place.plain(own));
            }
        }
        let (theirs, fails): (Vec<_>, Vec<_>) = self.expected(step, turn).into_iter().unzip();
        self.compared += theirs.len();
        for at in 0..ours.len().max(theirs.len()) {
            if ours.get(at) != theirs.get(at) {
                let (ours, theirs) = (ours.get(at), theirs.get(at));
                let before = at.checked_sub(1).and_then(|at| answers.get(at));
                let what =
                    format!("call {at} is {ours:?}, recorded {theirs:?}; before: {before:?}");
                self.differences.push(what);
                return;
            }
        }
        for (at, (exit, out, err)) in answers.iter().enumerate() {
            if (*exit != 0) != fails[at] {
                let script = &theirs[at].1;
                self.differences.push(format!("{script} answered {exit} {out:?} {err:?}"));
            }
        }
    }

    pub(super) fn compare_states(&mut self, step: &Step, turn: &Turn) {
        let mut wrong = Vec::new();
        let mut model = self.cloud.oned.model();
        for (id, state, lcm, error) in &step.vms {
            let Some(vm) = model.vms.get_mut(id) else {
                wrong.push(format!("there is no VM {id}"));
                continue;
            };
            let (ours, told) = ((vm.state.number(), vm.lcm.number()), vm.error.take());
            let recorded_end = match turn.cold {
                Some(_) => cold_end(*state, *lcm),
                None => (*state, *lcm),
            };
            let theirs =
                turn.ends.map_or(recorded_end, |(state, lcm)| (state.number(), lcm.number()));
            if ours != theirs {
                wrong.push(format!("VM {id} is in {ours:?}, recorded {theirs:?}: {told:?}"));
            }
            // Errors of earlier steps stay with a real oned; here each is looked at once.
            let failed = failing(step).is_some()
                || turn.refuses.is_some()
                || step.command.contains(" exec ");
            // Only the log tells of a soft reboot that fails.
            let silent =
                step.command.starts_with("onevm reboot ") && !step.command.contains("--hard");
            match (&told, error) {
                (Some(told), _) if turn.refuses.is_some() => wrong.extend(sentence(told)),
                (Some(told), Some(error))
                    if told.starts_with(recorded(&cold_error(error, turn))) =>
                {
                    wrong.extend(sentence(told).filter(|_| failing(step).is_some()));
                }
                (None, None) => {}
                (None, Some(_)) if !failed || failing(step).is_none() || silent => {}
                _ => wrong.push(format!("VM {id} says {told:?}, recorded {error:?}")),
            }
        }
        let made = step.images.iter().filter(|_| turn.answers.is_none());
        for (id, state, [_, format, _], error) in made {
            let Some(image) = model.images.get(id) else {
                wrong.push(format!("there is no image {id}"));
                continue;
            };
            let state = turn.image.map_or(state.clone(), ImageState::name);
            let told = image.error.as_deref().unwrap_or_default();
            let error = error.as_deref().filter(|_| turn.image.is_none()).unwrap_or_default();
            let same = match error {
                "" if turn.refuses.is_some() => sentence(told).is_none(),
                "" => told.is_empty(),
                error => told.starts_with(recorded(error)),
            };
            if image.state.0.name() != state || !same {
                let ours = (image.state.0, told);
                wrong.push(format!("image {id} is {ours:?}, recorded {:?}", (state, error)));
            }
            let ours = self.cloud.oned.drivers.place.plain(&image.source);
            if image.state.0 == ImageState::Ready && image.format != *format && !ours.contains(':')
            {
                wrong.push(format!("image {id} is {}, recorded {format}", image.format));
            }
        }
        wrong.extend(left_and_hosts(step, &model));
        drop(model);
        self.differences.append(&mut wrong);
    }
}

/// The call of a transfer driver's that takes back what that one made, of the same disk.
fn taken_back(script: &str, (on, made, args): &Words) -> Option<Words> {
    let dir = made.rsplit_once('/')?.0;
    let mut words = args[args.len().checked_sub(3)?..].to_vec();
    if script == "mvds" {
        let source = args.first()?;
        words.insert(1, source.strip_prefix("frontend:").unwrap_or(source).to_owned());
    }
    Some((on.clone(), format!("{dir}/{script}"), words))
}

/// What a recorded error says before the recorder's own words.
fn recorded(error: &str) -> &str {
    let own = ["recorder: ", "ERROR MESSAGE", "plain one"];
    let before = own.iter().filter_map(|words| Some(error.split_once(words)?.0));
    before.min_by_key(|before| before.len()).unwrap_or(error)
}

/// Scripts of checkpoints, and those which do the same by power-off.
const COLD: [(&str, &str); 2] = [("/save", "/shutdown"), ("/restore", "/deploy")];

/// The script that is called where there are no checkpoints.
pub(super) fn cold_script(script: &str, turn: &Turn) -> String {
    let own = COLD.iter().find(|(with, _)| turn.cold.is_some() && script.ends_with(with));
    own.map_or_else(|| script.to_owned(), |(with, without)| script.replace(with, without))
}

/// Its words: `save ID CHECKPOINT HOST VM HOST`, `restore CHECKPOINT HOST ID VM HOST`.
fn cold_words(script: &str, mut words: Vec<String>) -> Vec<String> {
    if script.ends_with("/save") {
        words.remove(1);
    } else if script.ends_with("/restore") {
        words.remove(2);
        words[0] = words[0].replace("/checkpoint", "/deployment.0");
    }
    words
}

/// Where a VM ends there: powered off, not suspended; undeployed, not stopped.
fn cold_end(state: u8, lcm: u8) -> (u8, u8) {
    let ends = [
        (State::Suspended.number(), State::Poweroff.number()),
        (State::Stopped.number(), State::Undeployed.number()),
    ];
    let lcms = [
        (Lcm::EpilogStopFailure, Lcm::EpilogUndeployFailure),
        (Lcm::PrologResumeFailure, Lcm::PrologUndeployFailure),
        (Lcm::BootStoppedFailure, Lcm::BootUndeployFailure),
        (Lcm::BootMigrateFailure, Lcm::BootFailure),
    ];
    let state = ends.iter().find(|(with, _)| *with == state).map_or(state, |(_, own)| *own);
    let own = lcms.iter().find(|(with, _)| with.number() == lcm);
    (state, own.map_or(lcm, |(_, own)| own.number()))
}

/// What an error is called there.
fn cold_error(error: &str, turn: &Turn) -> String {
    let words = [("SAVE: ", "SHUTDOWN: "), ("RESTORE: ", "DEPLOY: ")];
    let own = words.iter().find(|(with, _)| turn.cold.is_some() && error.starts_with(with));
    own.map_or_else(|| error.to_owned(), |(with, own)| error.replacen(with, own, 1))
}

/// What is wrong with an error that is to be one sentence.
fn sentence(error: &str) -> Option<String> {
    let text = error.trim_end_matches("ExitCode: 1");
    let one = text.ends_with('.') && !text.contains(". ") && !text.contains('\n');
    (!one).then(|| format!("this is not one sentence: {error}"))
}
