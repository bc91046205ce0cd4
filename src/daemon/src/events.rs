//! Events, numbered without gaps. The last ones are kept for those who ask later.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ocivisor_core::state::Timestamp;
use ocivisor_schema::event::{EventDataV1, EventV1};
use ocivisor_schema::reply::EventsReply;
use ocivisor_schema::{Text, TimeV1};
use tokio::sync::watch;

use crate::operations::Subject;

/// Events that are kept.
const KEPT: usize = 10_000;

/// The journal.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<Kept>,
    next: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<EventV1>,
    next: u64,
}

impl Events {
    /// An empty journal. Its numbers begin with the time, in milliseconds: beyond those of an
    /// earlier daemon, so that who asks for what came after one of those learns that some are lost.
    pub fn new(now: Timestamp) -> Self {
        let kept = Kept { events: VecDeque::new(), next: now.0 };
        Self { kept: Mutex::new(kept), next: watch::channel(now.0).0 }
    }

    /// Adds an event.
    pub fn publish(&self, at: Timestamp, subject: &Subject, data: EventDataV1) {
        let vm = subject.vm().cloned().map(Text);
        let image = subject.image().map(str::to_owned);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = kept.next;
        kept.next += 1;
        kept.events.push_back(EventV1 { seq, at: TimeV1(at), vm, image, data });
        if kept.events.len() > KEPT {
            kept.events.pop_front();
        }
        self.next.send_replace(kept.next);
    }

    /// Events from `seq` on; waits for one if there is none.
    pub async fn since(&self, seq: u64, limit: usize, wait: Duration) -> EventsReply {
        let mut next = self.next.subscribe();
        let wait = if seq > *next.borrow() { Duration::ZERO } else { wait };
        // Timed out or not, what is there is the answer.
        let _ = tokio::time::timeout(wait, next.wait_for(|next| *next > seq)).await;
        self.take(seq, limit)
    }

    fn take(&self, seq: u64, limit: usize) -> EventsReply {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = kept.events.front().map_or(kept.next, |event| event.seq);
        let skip = usize::try_from(seq.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let events: Vec<EventV1> = kept.events.iter().skip(skip).take(limit).cloned().collect();
        let next_seq = events.last().map_or(kept.next, |event| event.seq + 1);
        // A number beyond the next one is of an earlier daemon, whose events are gone.
        EventsReply { events, next_seq, lost: seq < oldest && seq != 0 || seq > kept.next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_replayed_in_order_without_gaps() {
        let (events, vm) = (Events::new(Timestamp(1)), Subject::Vm("one-1".parse().unwrap()));
        for _ in 0..5 {
            events.publish(Timestamp(1), &vm, EventDataV1::VmForgotten);
        }
        let reply = events.since(2, 2, Duration::ZERO).await;
        assert_eq!(reply.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((reply.next_seq, reply.lost), (4, false));
        let rest = events.since(reply.next_seq, 100, Duration::ZERO).await;
        assert_eq!(rest.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [4, 5]);
        let none = events.since(6, 100, Duration::ZERO).await;
        assert_eq!((none.events.len(), none.next_seq, none.lost), (0, 6, false));
        assert!(events.since(99, 100, Duration::ZERO).await.lost);
    }

    #[tokio::test]
    async fn what_was_forgotten_is_said_to_be_lost() {
        let (events, vm) = (Events::new(Timestamp(1)), Subject::Vm("one-1".parse().unwrap()));
        for _ in 0..KEPT + 3 {
            events.publish(Timestamp(1), &vm, EventDataV1::VmForgotten);
        }
        let reply = events.since(1, 1, Duration::ZERO).await;
        assert_eq!((reply.events[0].seq, reply.lost), (4, true));
    }
}
