//! With a shell in the place of buildah.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use super::*;

const BUILDER: &str = "OCIVISOR_TEST_BUILDER";

/// As the command line calls it. Without the variable there is nothing to do.
#[test]
#[expect(clippy::disallowed_methods, reason = "the exit code is the program's, not the test's")]
fn a_builder() {
    if std::env::var_os(BUILDER).is_none() {
        return;
    }
    let code = builder().unwrap_or_else(|error| {
        eprintln!("{error}");
        1
    });
    std::process::exit(code.into());
}

fn enclosed(work: &Path, script: &str, timeout: Duration) -> Result<()> {
    let own = std::env::current_exe().unwrap().display().to_string();
    let test = "images::enclosed::tests::a_builder";
    let marked = format!("{BUILDER}=1");
    let builder = ["/usr/bin/env", &marked, &own, test, "--exact", "--nocapture"];
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let order = Order { work: work.to_owned(), argv };
    order.run(&builder.map(OsString::from), Path::new("/usr/bin/buildah"), timeout)
}

const LONG: Duration = Duration::from_secs(60);

fn work(top: &Path) -> PathBuf {
    let work = top.canonicalize().unwrap().join("work");
    fs::create_dir(&work).unwrap();
    work
}

#[test]
fn nothing_is_there_but_programs_and_what_is_known_of_registries() {
    let top = tempfile::tempdir().unwrap();
    File::create_new(top.path().join("secret")).unwrap().write_all(b"secret").unwrap();
    let work = work(top.path());
    File::create_new(work.join("own")).unwrap().write_all(b"own").unwrap();
    let script = "cd /build && cat own > got && ls -A / > top && ls -A /var > var && ls -A /run > run && \
        find /etc /run ! -type d > etc && (ls -A /proc/1/fd > open) && echo $$ > pid && \
        tr '\\0' '\\n' < /proc/1/environ | cut -d= -f1 > names && \
        ls /proc | grep '^[0-9]' | wc -l > processes && \
        ! touch /usr/bin/ocv-enclosed && ! touch /bin/ocv-enclosed && \
        echo x > /tmp/from && cat /var/tmp/from > /dev/null && test -s tmp/from";
    fs::create_dir(work.join("tmp")).unwrap();
    enclosed(&work, script, LONG).unwrap();
    let lines = |name: &str| -> BTreeSet<String> {
        let text = fs::read_to_string(work.join(name)).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    let programs = PROGRAMS.iter().filter(|dir| Path::new(dir).exists());
    let mut all: BTreeSet<String> = programs.map(|dir| dir[1..].to_owned()).collect();
    all.extend(["build", "dev", "etc", "proc", "run", "sys", "tmp", "var"].map(str::to_owned));
    assert_eq!(lines("top"), all);
    let resolvers = set(&["systemd", "NetworkManager"]);
    let run: BTreeSet<String> = lines("run").difference(&resolvers).cloned().collect();
    assert_eq!((lines("var"), run), (set(&["tmp"]), set(&["user"])));
    let known = |path: &String| {
        FILES.contains(&&**path) || FOLDERS.iter().any(|(dir, ..)| path.starts_with(dir))
    };
    assert!(lines("etc").iter().all(known), "{:?}", lines("etc"));
    assert!(lines("etc").contains("/etc/passwd"));
    assert_eq!(lines("open"), set(&["0", "1", "2"]));
    assert_eq!(lines("pid"), set(&["1"]));
    let told = lines("names").into_iter().filter(|name| !VARIABLES.contains(&&**name));
    let want = set(&["HOME", "LC_ALL", "PATH", "TMPDIR", "XDG_RUNTIME_DIR"]);
    assert_eq!(told.collect::<BTreeSet<_>>(), want);
    let processes: u32 = lines("processes").first().unwrap().parse().unwrap();
    assert!(processes < 8, "{processes} processes");
    assert_eq!(fs::read(work.join("got")).unwrap(), b"own");
    // The machine has what it had.
    assert_eq!(fs::read(top.path().join("secret")).unwrap(), b"secret");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(work.to_str().unwrap()));
}

#[test]
fn a_failure_is_the_programs_own() {
    let top = tempfile::tempdir().unwrap();
    let work = work(top.path());
    let error = enclosed(&work, "echo first >&2; echo the end >&2; exit 7", LONG).unwrap_err();
    assert!(error.message.ends_with("failed (exit status: 7): the end"), "{error}");
    let absent = work.join("absent");
    let error = enclosed(&absent, "true", LONG).unwrap_err();
    let want = format!("give the build a root of its own: cannot take {}", absent.display());
    assert!(error.message.contains(&want), "{error}");
}

/// Whether somebody waits so long.
fn waits(mark: &str) -> bool {
    let line = format!("sleep\0{mark}\0");
    let processes = fs::read_dir("/proc").unwrap();
    let lines = processes.filter_map(|e| fs::read(e.ok()?.path().join("cmdline")).ok());
    lines.into_iter().any(|found| found == line.as_bytes())
}

fn gone(mark: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while waits(mark) {
        assert!(Instant::now() < deadline, "sleep {mark} goes on");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn whatever_a_build_started_ends_with_it() {
    let top = tempfile::tempdir().unwrap();
    let work = work(top.path());
    let mark = format!("86410{}.25", std::process::id());
    // It ends by itself, and leaves somebody who left its session.
    enclosed(&work, &format!("setsid sleep {mark} & true"), LONG).unwrap();
    gone(&mark);
    // It does not end.
    let script = format!("setsid sleep {mark} & wait");
    let error = enclosed(&work, &script, Duration::from_secs(2)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    gone(&mark);
}

const LIFE: &str = "OCIVISOR_TEST_ENCLOSED_LIFE";

/// The life of a driver that is killed. Without the variable there is nothing to do.
#[test]
fn driver() {
    let Some(work) = std::env::var_os(LIFE) else { return };
    let mark = std::env::var("OCIVISOR_TEST_ENCLOSED_MARK").unwrap();
    let _ = enclosed(Path::new(&work), &format!("setsid sleep {mark} & wait"), 10 * LONG);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test runs itself as the process to be killed")]
fn a_build_ends_with_its_driver() {
    let top = tempfile::tempdir().unwrap();
    let work = work(top.path());
    let mark = format!("86411{}.25", std::process::id());
    let mut driver = Command::new(std::env::current_exe().unwrap())
        .args(["images::enclosed::tests::driver", "--exact"])
        .env(LIFE, &work)
        .env("OCIVISOR_TEST_ENCLOSED_MARK", &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !waits(&mark) {
        assert!(Instant::now() < deadline, "nothing ever ran");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    driver.kill().unwrap();
    driver.wait().unwrap();
    gone(&mark);
}
