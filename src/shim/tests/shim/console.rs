//! Console: log, viewers, the one who types.

use std::fs;

use ocivisor_shim::client::Event;
use ocivisor_shim::exit::Exit;
use ocivisor_shim::message::{Access, Size};

use crate::guest::{Guest, Options, last_events, read_until, until};

#[test]
fn the_log_is_rotated_and_both_files_stay_within_the_bound() {
    let options = Options { log_max: 10_000, ..Options::default() };
    let mut guest = Guest::with("seq 1 20000; echo end", options);
    assert_eq!(guest.end(), Exit::Code(0));
    let (new, old) = (guest.log.clone(), guest.log.with_file_name("console.log.1"));
    let (new, old) = (fs::read(new).unwrap(), fs::read(old).unwrap());
    assert_eq!(old.len(), 10_000);
    assert!(new.len() <= 10_000);
    let kept = String::from_utf8([old, new].concat()).unwrap();
    let all: String = (1..=20_000).map(|n| format!("{n}\r\n")).collect::<String>() + "end\r\n";
    assert!(all.ends_with(&kept));
    assert_eq!(
        fs::read_dir(guest.dir.path())
            .unwrap()
            .filter(|e| {
                e.as_ref().unwrap().file_name().to_string_lossy().starts_with("console")
            })
            .count(),
        2
    );
}

#[test]
fn two_viewers_see_all_and_one_of_them_types() {
    let mut guest = Guest::run(
        "stty -echo; echo ready; while read x; do echo \"<$x>\"; [ \"$x\" = end ] && exit 2; done",
    );
    until("ready", || guest.log_text().contains("ready").then_some(()));
    let mut first = guest.attach(Access::Write);
    let mut second = guest.attach(Access::Write);
    assert!(first.writes());
    assert!(!second.writes());
    second.type_bytes(b"not heard\n").unwrap();
    second.resize(Size { cols: 1, rows: 1 }).unwrap();
    first.type_bytes(b"hello\n").unwrap();
    assert_eq!(read_until(&mut first, "<hello>\r\n").0, "<hello>\r\n");
    assert_eq!(read_until(&mut second, "<hello>\r\n").0, "<hello>\r\n");
    // Takes over: the first one is detached, the second stays a viewer, the third types.
    let mut third = guest.attach(Access::Take);
    assert!(third.writes());
    assert_eq!(last_events(&mut first), [Event::Detached]);
    third.type_bytes(b"end\n").unwrap();
    let ended = [Event::Exit(Exit::Code(2)), Event::Detached];
    assert_eq!(last_events(&mut second), ended);
    assert_eq!(last_events(&mut third), ended);
    assert_eq!(guest.end(), Exit::Code(2));
}

#[test]
fn the_place_of_a_writer_that_left_is_free() {
    let guest = Guest::run("stty -echo; read x; echo \"<$x>\"; read x");
    let mut first = guest.attach(Access::Write);
    first.detach().unwrap();
    assert_eq!(last_events(&mut first), [Event::Detached]);
    let second = guest.attach(Access::Write);
    assert!(second.writes());
    drop(second);
    let mut third = until("the place", || Some(guest.attach(Access::Write)).filter(|c| c.writes()));
    third.type_bytes(b"hi\n").unwrap();
    read_until(&mut third, "<hi>");
}

#[test]
fn the_writers_terminal_size_is_the_guests() {
    let guest = Guest::run("trap 'stty size' WINCH; echo ready; while :; do read x; done");
    until("ready", || guest.log_text().contains("ready").then_some(()));
    let mut console = guest.attach(Access::Write);
    read_until(&mut console, "43 132\r\n");
    console.resize(Size { cols: 99, rows: 33 }).unwrap();
    read_until(&mut console, "33 99\r\n");
}

#[test]
fn a_replay_is_the_tail_of_the_log() {
    let guest = Guest::run("echo one; echo two; read x");
    until("two", || guest.log_text().contains("two\r\n").then_some(()));
    let size = Size::default();
    let mut console = guest.client().attach(Access::Read, size, true).unwrap();
    assert_eq!(console.next_event().unwrap(), Event::Output(b"one\r\ntwo\r\n".to_vec()));
}

#[test]
fn a_viewer_that_does_not_read_loses_output_but_holds_up_nobody() {
    let guest = Guest::run(
        "stty -echo; echo ready; read x; head -c 3000000 /dev/zero | tr '\\0' 'a'; echo done; read x; echo more; read x",
    );
    until("ready", || guest.log_text().contains("ready\r\n").then_some(()));
    let mut slow = guest.attach(Access::Read);
    let mut quick = guest.attach(Access::Write);
    quick.type_bytes(b"\n").unwrap();
    let reader = std::thread::spawn(move || {
        let (seen, gap) = read_until(&mut quick, "done\r\n");
        (quick, seen.len() as u64 + gap)
    });
    let (mut quick, total) = reader.join().unwrap();
    assert_eq!(total, 3_000_006);
    quick.type_bytes(b"\n").unwrap();
    read_until(&mut quick, "more\r\n");
    // Whatever the slow one's socket and buffer held, then a gap, then what is new.
    let mut total = 0;
    let mut gaps = 0;
    quick.type_bytes(b"\n").unwrap();
    while total < 3_000_006 {
        match slow.next_event().unwrap() {
            Event::Output(bytes) => total += bytes.len() as u64,
            Event::Gap(bytes) => {
                total += u64::from(bytes);
                gaps += 1;
            }
            Event::Exit(_) => {}
            Event::Detached => break,
        }
    }
    assert!(total >= 3_000_006, "{total}");
    assert!(gaps > 0);
}

#[test]
fn a_guest_that_does_not_read_blocks_only_the_writer() {
    let mut guest = Guest::run("stty -echo -icanon; echo ready; kill -STOP $$; read x");
    until("ready", || guest.log_text().contains("ready").then_some(()));
    let mut console = guest.attach(Access::Write);
    let typist = std::thread::spawn(move || {
        // Far more than the terminal takes: ends by the connection's end.
        while console.type_bytes(&[b'x'; 4096]).is_ok() {}
    });
    for _ in 0..100 {
        guest.client().ping().unwrap();
    }
    guest.client().signal(9).unwrap();
    assert_eq!(guest.end(), Exit::Signal(9));
    typist.join().unwrap();
}

#[test]
fn a_console_that_the_guest_closes_costs_nothing_and_works_again() {
    let guest = Guest::run(
        "t=$(tty); exec <&- >&- 2>&-; sleep 1; exec <$t >$t 2>&1; echo again; read x; echo \"<$x>\"; read x",
    );
    let cpu = |guest: &Guest| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", guest.shim.id())).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .filter_map(|f| f.parse().ok())
            .collect();
        // utime and stime, fields 14 and 15; the state letter is not a number.
        fields[10] + fields[11]
    };
    until("again", || guest.log_text().contains("again").then_some(()));
    assert!(cpu(&guest) < 20, "{} ticks", cpu(&guest));
    let mut console = guest.attach(Access::Write);
    console.type_bytes(b"hi\n").unwrap();
    read_until(&mut console, "<hi>");
}
