//! Whose work is whose, how much there may be, and how it ends.

use super::*;
use ocivisor_host::layout::Layout;

fn jobs(dir: &std::path::Path) -> Arc<Jobs> {
    let layout = Layout { state: dir.into(), run: dir.into(), cgroup_base: "x".into() };
    let operations = Arc::new(Operations::open(&layout).unwrap());
    Arc::new(Jobs::new(operations, Arc::new(Events::new(Timestamp(1))), || Timestamp(7)))
}

const LONG: Duration = Duration::from_secs(60);
const ROOT: Caller = Caller::Admin(0);
const ONE: Caller = Caller::Operator(1001);
const TWO: Caller = Caller::Operator(1002);

/// Work on the image `x`.
fn order(kind: &'static str) -> Order {
    Order::new(kind, Subject::Image("x".into()), &())
}

fn id(text: &str) -> RequestId {
    text.parse().unwrap()
}

#[tokio::test]
async fn work_is_an_operation_with_events_and_a_result() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let request = id("r-1");
    let debian = || Order::new("import", Subject::Image("debian".into()), &());
    let made = MadeV1::Pruned(ocivisor_schema::image::PrunedV1::default());
    let result = made.clone();
    let begun = jobs.begin(request.clone(), ROOT, debian(), move |teller| {
        teller.at("layer 1", Some(ProgressV1 { done: 1, total: Some(9) }));
        teller.at("layer 1", Some(ProgressV1 { done: 2, total: Some(9) }));
        Ok(Some(result))
    });
    let begun = begun.unwrap();
    let status = jobs.operations.wait(begun.op.0, LONG).await.unwrap();
    assert_eq!(status.subject, Subject::Image("debian".into()));
    assert_eq!((status.kind, status.result, status.made), ("import", Some(Ok(())), Some(made)));
    // Started, one step, finished: how far it is makes an event only now and then.
    let events = jobs.events.since(0, 9, Duration::ZERO).await.events;
    assert!(events.iter().all(|event| event.image.as_deref() == Some("debian")));
    assert_eq!(events.len(), 3, "{events:?}");

    let again = jobs.begin(request, ROOT, debian(), |_| panic!("once")).unwrap();
    assert_eq!((again.op, again.joined), (begun.op, true));
}

#[tokio::test]
async fn work_beyond_the_limit_is_refused_and_the_rest_gets_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let begin = |n: usize| {
        let gate = Arc::clone(&gate);
        jobs.begin(id(&format!("r-{n}")), ROOT, order("export"), move |_| {
            // Ends when the other side is dropped.
            let _ = gate.lock().unwrap().recv();
            Ok(None)
        })
    };
    let begun: Vec<_> = (0..AT_ONCE + WAITING).map(|n| begin(n).unwrap()).collect();
    assert_eq!(begin(1000).unwrap_err().kind, ErrorKind::Exhausted);
    drop(open);
    for reply in begun {
        let status = jobs.operations.wait(reply.op.0, LONG).await.unwrap();
        assert_eq!(status.result, Some(Ok(())));
    }
    assert!(begin(1001).is_ok());
}

#[tokio::test]
async fn a_failure_is_the_operations_result() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let error = Error::new(ErrorKind::Image, "no such manifest");
    let told = error.clone();
    let begun = jobs.begin(id("r"), ROOT, order("import"), move |_| Err(told));
    let status = jobs.operations.wait(begun.unwrap().op.0, LONG).await.unwrap();
    assert_eq!(status.result, Some(Err(error)));
}

#[tokio::test]
async fn a_request_is_one_by_its_user_its_id_and_all_that_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let begin = |caller, name: &str, order| jobs.begin(id(name), caller, order, |_| Ok(None));
    let of = |image: &str, options: &str| {
        Order::new("import", Subject::Image(image.into()), &(image, options))
    };
    let first = begin(ONE, "r", of("a", "")).unwrap();
    let again = begin(ONE, "r", of("a", "")).unwrap();
    assert_eq!((again.op, again.joined), (first.op, true));
    for other in [of("b", ""), of("a", "keep_boot"), order("push")] {
        let refused = begin(ONE, "r", other).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        let end = format!("request id r was used for another request, import a ({})", first.op);
        assert!(refused.message.ends_with(&end), "{refused}");
    }
    // Another user's request of the same words is his own, an admin's is not.
    let others = begin(TWO, "r", of("a", "")).unwrap();
    assert!(others.op != first.op && !others.joined);
    assert!(begin(ROOT, "r", of("a", "")).unwrap().joined);
    let own = begin(ROOT, "r", of("b", "")).unwrap();
    assert!(!own.joined && ![first.op, others.op].contains(&own.op));
    // Nobody can have the requests of others forgotten.
    for n in 0..KEPT {
        let begun = begin(TWO, &format!("n-{n}"), of("a", "")).unwrap();
        jobs.operations.wait(begun.op.0, LONG).await.unwrap();
        while jobs.known.lock().unwrap().unfinished.contains_key(&begun.op.0) {
            tokio::task::yield_now().await;
        }
    }
    assert!(begin(ONE, "r", of("a", "")).unwrap().joined);
    assert!(!begin(TWO, "r", of("a", "")).unwrap().joined);
}

#[tokio::test]
async fn operators_end_only_their_own_work_and_leave_room_for_admins() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let begin = |caller, n: usize| {
        jobs.begin(id(&format!("r-{n}")), caller, order("push"), |tell| {
            while !tell.cancel().is_cancelled() {
                std::thread::yield_now();
            }
            Err(Error::new(ErrorKind::Cancelled, "cancelled"))
        })
    };
    let op = begin(ONE, 0).unwrap().op.0;
    let refused = jobs.cancel(op, TWO).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Permission);
    assert_eq!(refused.message, format!("{op} was begun by another user"));
    assert_eq!(jobs.operations.get(op).unwrap().result, None);
    jobs.cancel(op, ONE).unwrap();
    assert_eq!(jobs.operations.wait(op, LONG).await.unwrap().result, cancelled("push"));
    // Also when it is over.
    assert_eq!(jobs.cancel(op, TWO).unwrap_err().kind, ErrorKind::Permission);
    while !jobs.known.lock().unwrap().unfinished.is_empty() {
        tokio::task::yield_now().await;
    }

    let of_two: Vec<OpId> = (1..=OPERATORS).map(|n| begin(TWO, n).unwrap().op.0).collect();
    assert_eq!(begin(ONE, 500).unwrap_err().kind, ErrorKind::Exhausted);
    let roots = begin(ROOT, 500).unwrap().op.0;
    assert_eq!(jobs.cancel(roots, TWO).unwrap_err().kind, ErrorKind::Permission);
    for op in of_two.into_iter().chain([roots]) {
        jobs.cancel(op, ROOT).unwrap();
        assert_eq!(jobs.operations.wait(op, LONG).await.unwrap().result, cancelled("push"));
    }
}

#[tokio::test]
async fn what_is_made_of_a_vm_is_found_under_both() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let subject = Subject::ImageOf("one-1".parse().unwrap(), "web:2".into());
    let begun = jobs.begin(id("r"), ONE, Order::new("commit", subject, &()), |_| Ok(None));
    let begun = begun.unwrap();
    assert_eq!(begun.vm, Some(Text("one-1".parse().unwrap())));
    assert_eq!(begun.image.as_deref(), Some("web:2"));
    jobs.operations.wait(begun.op.0, LONG).await.unwrap();
    let ended = || jobs.events.since(0, 9, LONG);
    let events = ended().await.events;
    for event in &events {
        assert_eq!((&event.vm, &event.image), (&begun.vm, &begun.image), "{event:?}");
    }
}

fn cancelled(kind: &str) -> Option<Result<()>> {
    Some(Err(Error::new(ErrorKind::Cancelled, format!("{kind} x: cancelled"))))
}

#[tokio::test]
async fn work_that_runs_or_waits_can_be_ended_and_what_is_done_stays_done() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let begin = |n: usize| {
        let begun = jobs.begin(id(&format!("r-{n}")), ROOT, order("push"), |tell| {
            while !tell.cancel().is_cancelled() {
                std::thread::yield_now();
            }
            Err(Error::new(ErrorKind::Cancelled, "cancelled"))
        });
        begun.unwrap().op.0
    };
    let begun: Vec<OpId> = (0..=AT_ONCE).map(begin).collect();
    // The last one waits for a turn that does not come.
    for op in begun.into_iter().rev() {
        jobs.cancel(op, ROOT).unwrap();
        let status = jobs.operations.wait(op, LONG).await.unwrap();
        assert_eq!(status.result, cancelled("push"));
        jobs.cancel(op, ROOT).unwrap();
    }
    let done = jobs.begin(id("d"), ROOT, order("import"), |_| Ok(None));
    let op = done.unwrap().op.0;
    jobs.operations.wait(op, LONG).await.unwrap();
    jobs.cancel(op, ROOT).unwrap();
    assert_eq!(jobs.operations.get(op).unwrap().result, Some(Ok(())));
}

#[tokio::test]
async fn what_is_not_ended_this_way_says_how_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let none = jobs.cancel(OpId(77), ROOT).unwrap_err();
    assert_eq!(none.kind, ErrorKind::NotFound);
    let vm = jobs.operations.next().unwrap();
    jobs.operations.begin(vm, Subject::Vm("one-1".parse().unwrap()), "start", None);
    let refused = jobs.cancel(vm, ROOT).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert_eq!(refused.message, format!("{vm} is the start of vm one-1: it is not cancelled"));
    assert_eq!(refused.hint.as_deref(), Some("vm.destroy ends whatever the vm is in"));

    let (open, gate) = std::sync::mpsc::channel::<()>();
    let prune = jobs.begin(id("p"), ROOT, order("prune"), move |_| {
        // Ends when the other side is dropped.
        let _ = gate.recv();
        Ok(None)
    });
    let op = prune.unwrap().op.0;
    let refused = jobs.cancel(op, ROOT).unwrap_err();
    assert_eq!(refused.message, format!("{op}: prune cannot be cancelled"));
    drop(open);
    assert_eq!(jobs.operations.wait(op, LONG).await.unwrap().result, Some(Ok(())));
}
