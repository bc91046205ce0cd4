//! What is compared with a recording: how users are answered, calls, where VMs and images end.

use super::table::Turn;
use super::{Live, failing};
use crate::drivers::Call;
use crate::model::ImageState;
use crate::recording::{RecordedCall, Step};

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

    /// The recorded calls, in the words that they have here.
    fn expected(&self, step: &Step, turn: &Turn) -> Vec<Words> {
        if let Some((_, calls)) = turn.asked {
            let words = |call: &&str| call.split(' ').map(str::to_owned).collect::<Vec<_>>();
            let call = |words: Vec<String>| (words[0].clone(), words[1].clone(), words[2..].into());
            return calls.iter().map(words).map(call).collect();
        }
        let mut calls: Vec<&RecordedCall> = step.calls.iter().collect();
        if let Some(script) = turn.refuses {
            let last = calls.iter().position(|call| call.script.ends_with(script));
            calls.truncate(last.map_or(calls.len(), |last| last + 1));
        }
        let word = |arg: &String| match arg.strip_prefix("frontend:") {
            // What has a colon is no path of a machine.
            Some(path) => match self.sources.get(path) {
                Some(own) if own.contains(':') => own.clone(),
                Some(own) => format!("frontend:{own}"),
                None => arg.clone(),
            },
            None => self.sources.get(arg).unwrap_or(arg).clone(),
        };
        let call = |call: &RecordedCall| {
            let args = call.args.iter().map(|arg| self.unnumbered(&word(arg)));
            let mut args: Vec<String> = args.collect();
            let vm = step.vms.first().map_or(0, |vm| vm.0);
            let names = self.called.get(&vm).map(Vec::as_slice).unwrap_or_default();
            if args.first().is_some_and(|first| names.contains(first)) {
                args[0] = format!("one-{vm}");
            }
            (call.call.clone(), call.script.clone(), args)
        };
        let mut expected: Vec<_> = calls.into_iter().map(call).collect();
        if let (Some(script), Some((on, last, args))) = (turn.undone, expected.last().cloned()) {
            let dir = last.rsplit_once('/').map_or("", |(dir, _)| dir);
            expected.push((on, format!("{dir}/{script}"), args));
        }
        expected.extend(turn.taken_back.and_then(|script| taken_back(script, expected.first()?)));
        expected
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
        let recorded =
            |call: &&Call| !call.script.starts_with("/bin/") && !call.script.ends_with("/monitor");
        for call in seen.iter().filter(recorded) {
            ours.push(plain(call));
            answers.push(&call.answer);
        }
        // What a datastore's driver named an image is told to others.
        for (call, (_, out, _)) in step.calls.iter().zip(&answers) {
            let words = call.out.split_whitespace().next().zip(out.split_whitespace().next());
            if let Some((named, own)) = words.filter(|_| call.script.contains("/datastore/")) {
                self.sources.insert(named.to_owned(), place.plain(own));
            }
        }
        let theirs = self.expected(step, turn);
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
        let after = usize::from(turn.undone.is_some()) + usize::from(turn.taken_back.is_some());
        let refused = theirs.len().wrapping_sub(1 + after);
        for (at, (exit, out, err)) in answers.iter().enumerate() {
            let refused = turn.refuses.is_some() && at == refused;
            let recorded = step.calls.get(at).is_some_and(|call| call.exit != 0);
            if (*exit != 0) != (refused || recorded) {
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
            let theirs =
                turn.ends.map_or((*state, *lcm), |(state, lcm)| (state.number(), lcm.number()));
            if ours != theirs {
                wrong.push(format!("VM {id} is in {ours:?}, recorded {theirs:?}: {told:?}"));
            }
            // Errors of earlier steps stay with a real oned; here each is looked at once.
            let failed = failing(step).is_some()
                || turn.refuses.is_some()
                || step.command.contains(" exec ");
            match (&told, error) {
                (Some(told), _) if turn.refuses.is_some() => wrong.extend(sentence(told)),
                (Some(told), Some(error)) if told.starts_with(recorded(error)) => {
                    wrong.extend(sentence(told).filter(|_| failing(step).is_some()));
                }
                (None, None) => {}
                (None, Some(_)) if !failed || failing(step).is_none() => {}
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
        for id in step.gone.iter().filter(|id| model.images.contains_key(id)) {
            wrong.push(format!("image {id} is still there"));
        }
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

/// What is wrong with an error that is to be one sentence.
fn sentence(error: &str) -> Option<String> {
    let text = error.trim_end_matches("ExitCode: 1");
    let one = text.ends_with('.') && !text.contains(". ") && !text.contains('\n');
    (!one).then(|| format!("this is not one sentence: {error}"))
}
