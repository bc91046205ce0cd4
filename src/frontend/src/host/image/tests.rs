//! With a daemon that keeps blobs in memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;

const LAYERS: [&str; 3] = ["1", "2", "3"];

fn digest(of: &str) -> String {
    format!("sha256:{}", of.repeat(64))
}

/// More than a pipe holds, or so little that it is in the pipe before anybody reads.
fn blob(of: &str) -> Vec<u8> {
    of.repeat(if of == "2" { 1000 } else { 3 << 20 }).into_bytes()
}

#[derive(Clone, Default)]
struct Memory {
    have: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// How an import ends that reads nothing.
    ends: Option<Result<()>>,
    /// How often it ends so when it has read some of a second layer.
    interrupted: u32,
}

impl Daemon for Memory {
    fn lacking(&mut self, layout: &Path) -> Result<Vec<String>> {
        assert!(layout.join("index.json").exists() && layout.join("oci-layout").exists());
        let have = self.have.lock().unwrap();
        Ok(LAYERS.map(digest).into_iter().filter(|digest| !have.contains_key(digest)).collect())
    }

    fn import(&mut self, source: &str, _: &str) -> Result<()> {
        if let Some(ends) = &self.ends {
            return ends.clone();
        }
        let blobs = Path::new(source.strip_prefix("oci:").unwrap()).join("blobs/sha256");
        for layer in LAYERS {
            if self.have.lock().unwrap().contains_key(&digest(layer)) {
                continue;
            }
            let path = blobs.join(layer.repeat(64));
            if self.interrupted > 0 && layer != LAYERS[0] {
                self.interrupted -= 1;
                let mut some = [0; 100];
                File::open(path).unwrap().read_exact(&mut some).unwrap();
                return Err(Error::new(ErrorKind::Cancelled, "it ended before it was done"));
            }
            let bytes = std::fs::read(path).map_err(|e| Error::new(ErrorKind::Image, e))?;
            if bytes != blob(layer) {
                return Err(Error::new(ErrorKind::Image, "a blob is not whole"));
            }
            self.have.lock().unwrap().insert(digest(layer), bytes);
        }
        Ok(())
    }

    fn create_disk(&mut self, _: &str, _: u64, _: &Path) -> Result<()> {
        unreachable!()
    }

    fn adopt(&mut self, _: &Path) -> Result<()> {
        unreachable!()
    }

    fn is_there(&mut self) -> bool {
        true
    }

    fn end(&mut self, _: u32, _: &Path) -> Result<()> {
        unreachable!()
    }
}

/// What the other side sends: two documents, then these blobs.
fn sent(layers: &[&str]) -> Vec<u8> {
    let mut bytes = b"{}{}".to_vec();
    for layer in layers {
        let order = Order::Blob { digest: digest(layer), size: blob(layer).len() as u64 };
        wire::write_line(&mut bytes, &Message { v: wire::VERSION, order }).unwrap();
        bytes.extend(blob(layer));
    }
    bytes
}

/// Brings an image; says what was lacking, and how much of what was sent is left.
fn brought(root: &Path, sent: &[u8], daemon: &mut Memory) -> Result<(Vec<String>, usize)> {
    let document = |of: &str| Document { media_type: "x".into(), digest: digest(of), size: 2 };
    let place = format!("{}/101", root.display()).parse().unwrap();
    let (mut from, mut to) = (sent, Vec::new());
    bring(&place, (&document("a"), &document("b")), &mut from, &mut to, daemon)?;
    let lacking = match wire::try_line(&mut &to[..])? {
        Some(Reply::Lacking { blobs }) => blobs,
        None => Vec::new(),
        other => panic!("{other:?}"),
    };
    Ok((lacking, from.len()))
}

fn on_the_way(root: &Path) -> Vec<String> {
    let mut names = Dir::open(&root.join("101").join(STAGING)).unwrap().names().unwrap();
    names.retain(|name| !name.ends_with(".lock"));
    names
}

#[test]
fn of_two_vms_of_one_new_image_the_second_waits_and_finds_nothing_lacking() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Memory::default();
    let all = sent(&LAYERS);
    let mut asked: Vec<usize> = std::thread::scope(|scope| {
        let call = || brought(root.path(), &all, &mut daemon.clone()).unwrap().0.len();
        let calls: Vec<_> = (0..6).map(|_| scope.spawn(call)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    asked.sort_unstable();
    assert_eq!(asked, [0, 0, 0, 0, 0, 3]);
    assert_eq!(daemon.have.lock().unwrap().len(), 3);
    assert_eq!(on_the_way(root.path()), Vec::<String>::new());
}

#[test]
fn what_was_whole_when_the_connection_broke_does_not_come_again() {
    let root = tempfile::tempdir().unwrap();
    let mut daemon = Memory::default();
    let all = sent(&LAYERS);
    let error = brought(root.path(), &all[..all.len() - 1_000_000], &mut daemon).unwrap_err();
    assert!(crate::files::is_broken(&error), "{error}");
    assert_eq!(on_the_way(root.path()), Vec::<String>::new());
    let (lacking, left) = brought(root.path(), &sent(&["3"]), &mut daemon).unwrap();
    assert_eq!((lacking, left), (vec![digest("3")], 0));
    // Not even the first one begins.
    let error = brought(root.path(), b"{}{}", &mut Memory::default()).unwrap_err();
    assert!(crate::files::is_broken(&error), "{error}");
}

#[test]
fn an_import_that_ends_before_it_has_read_all_keeps_nobody_waiting() {
    let root = tempfile::tempdir().unwrap();
    let all = sent(&LAYERS);
    // Another way the image came here; what is still on its way is nobody's.
    let mut daemon = Memory { ends: Some(Ok(())), ..Memory::default() };
    assert_eq!(brought(root.path(), &all, &mut daemon).unwrap().1, 0);
    let refused = Error::new(ErrorKind::Image, "refused");
    daemon.ends = Some(Err(refused.clone()));
    assert_eq!(brought(root.path(), &all, &mut daemon).unwrap_err(), refused);
    assert_eq!(on_the_way(root.path()), Vec::<String>::new());
}

#[test]
fn a_daemon_that_is_replaced_meanwhile_is_sent_the_rest_again() {
    let root = tempfile::tempdir().unwrap();
    let again = sent(&["2", "3"]);
    let mut daemon = Memory { interrupted: 2, ..Memory::default() };
    let all = [&sent(&LAYERS)[..], &again[4..], &again[4..]].concat();
    let (lacking, left) = brought(root.path(), &all, &mut daemon).unwrap();
    assert_eq!((lacking, left), (LAYERS.map(digest).to_vec(), 0));
    assert_eq!(daemon.have.lock().unwrap().len(), 3);
    // Not for ever.
    let mut daemon = Memory { interrupted: 3, ..Memory::default() };
    let error = brought(root.path(), &all, &mut daemon).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert_eq!(on_the_way(root.path()), Vec::<String>::new());
}

#[test]
fn who_sends_hears_that_nobody_reads_yet() {
    let root = tempfile::tempdir().unwrap();
    let fifo = Dir::open(root.path()).unwrap().fifo("1").unwrap();
    let (digest, sent) = (digest("1"), sent(&["1"]));
    let mut coming = VecDeque::from([(&*digest, fifo)]);
    let mut to = Vec::new();
    let mut signs = Signs::new(&mut to, Duration::ZERO);
    let asked = std::cell::Cell::new(0);
    let is_over = || asked.replace(asked.get() + 1) == 3;
    let left = feed(&mut coming, &mut &sent[4..], &mut signs, &is_over).unwrap();
    assert!(left.is_some_and(|left| left > 0));
    assert_eq!(to, b"\"waiting\"\n".repeat(3));
}

#[test]
fn hosts_of_one_datastore_do_not_meet_and_clear_their_own() {
    let root = tempfile::tempdir().unwrap();
    let datastore = Dir::open(root.path()).unwrap();
    let staging = |host: &str| Staging { host: host.into(), ..Staging::open(&datastore).unwrap() };
    let (one, other) = (staging("n1"), staging("n2"));
    let (hex, dead) = ("a".repeat(64), "b".repeat(64));
    let mut to = Vec::new();
    let _own = one.alone(&hex, &mut to).unwrap();
    let _theirs = other.alone(&hex, &mut to).unwrap();
    assert!(!staging("n1").try_lock(&one.locks().unwrap(), &hex).unwrap());
    for name in [one.name(&hex), one.name(&dead), other.name(&dead)] {
        one.dir.make(&name, 0o700).unwrap();
    }
    one.sweep().unwrap();
    let mut names = one.dir.names().unwrap();
    names.retain(|name| !name.ends_with(".lock"));
    assert_eq!(names, [one.name(&hex), other.name(&dead)]);
}
