//! What fuzzers begin with: small samples of each format, made by the tools of others.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::{program, run};

/// The targets of `fuzz/`.
pub const TARGETS: [&str; 13] = [
    "tar",
    "copy",
    "stream",
    "manifest",
    "config",
    "reference",
    "header",
    "answer",
    "qcow2",
    "disk",
    "iso",
    "vnc_client",
    "vnc_guest",
];

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Makes them in `dir/<target>`, anew.
///
/// # Errors
/// A tool fails or a file cannot be written.
pub fn make(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    for target in TARGETS {
        let dir = dir.join(target);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let work = dir.join("work");
    fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
    root(&work.join("root"))?;
    tars(&work, dir)?;
    texts(dir)?;
    disks(&work, dir)?;
    qcow2(&work, dir)?;
    isos(&work, dir)?;
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let write = || File::create(path)?.write_all(bytes);
    write().with_context(|| format!("write {}", path.display()))
}

fn tool(dir: &Path, line: &str) -> Result<()> {
    let mut words = line.split(' ');
    run(program(words.next().unwrap_or_default()).args(words).current_dir(dir))
}

/// A root with a little of everything, and one directory too large for the short forms of directories.
fn root(dir: &Path) -> Result<()> {
    for sub in ["etc", "many", "sbin"] {
        fs::create_dir_all(dir.join(sub)).with_context(|| format!("fill {}", dir.display()))?;
    }
    put(&dir.join("etc/os-release"), b"ID=test\n")?;
    put(&dir.join("sbin/init"), &b"init\n".repeat(300))?;
    for n in 0..70 {
        put(&dir.join(format!("many/file-number-{n:04}")), b"x")?;
    }
    let fill = || {
        fs::hard_link(dir.join("etc/os-release"), dir.join("etc/hard"))?;
        symlink("/etc/os-release", dir.join("etc/soft"))?;
        symlink("l".repeat(500), dir.join("etc/long"))?;
        for (key, len) in [("user.small", 5), ("user.large", 900)] {
            let flags = rustix::fs::XattrFlags::empty();
            let value = vec![b'x'; len];
            rustix::fs::setxattr(dir.join("etc/os-release"), key, &value, flags)?;
        }
        std::io::Result::Ok(())
    };
    fill().with_context(|| format!("fill {}", dir.display()))
}

fn tars(work: &Path, dir: &Path) -> Result<()> {
    for (format, options) in [
        ("v7", "--exclude=etc/long"),
        ("ustar", "--exclude=etc/long"),
        ("gnu", ""),
        ("posix", "--xattrs --pax-option=delete=[ac]time"),
        ("oldgnu", ""),
    ] {
        let file = dir.join(format!("tar/{format}")).display().to_string();
        let words: Vec<&str> = options.split(' ').filter(|word| !word.is_empty()).collect();
        let mut tar = program("tar");
        tar.args(["--create", "--sort=name", "--mtime=@1", "--format", format, "--file", &file]);
        run(tar.args(words).args(["etc", "sbin"]).current_dir(work.join("root")))?;
        let bytes = fs::read(&file).context("read a tar")?;
        put(&dir.join("copy").join(format), &bytes)?;
    }
    let plain = fs::read(dir.join("tar/ustar")).context("read a tar")?;
    put(&work.join("plain"), &plain)?;
    put(&dir.join("stream/plain"), &plain)?;
    for (name, line) in [
        ("gz", "gzip --keep --force --best plain"),
        ("xz", "xz --keep --force --threads=1 plain"),
        ("zst", "zstd --quiet --force plain"),
    ] {
        tool(work, line)?;
        let packed = fs::read(work.join(format!("plain.{name}"))).context("read a stream")?;
        put(&dir.join("stream").join(name), &packed)?;
        // gzip members and zstd frames may follow each other.
        put(&dir.join(format!("stream/{name}-twice")), &packed.repeat(2))?;
    }
    Ok(())
}

fn texts(dir: &Path) -> Result<()> {
    let digest = format!("sha256:{HEX}");
    let of = |media_type: &str| {
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":7}}"#)
    };
    let manifest = |own: &str, config: &str, layer: &str| {
        let (config, layer) = (of(config), of(layer));
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{own}","config":{config},"layers":[{layer},{layer}],"annotations":{{"a":"b"}}}}"#
        )
    };
    let (oci, docker) = ("application/vnd.oci.image.", "application/vnd.docker.");
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{oci}index.v1+json","manifests":[{{"mediaType":"{oci}manifest.v1+json","digest":"{digest}","size":7,"platform":{{"architecture":"amd64","os":"linux","variant":"v1","os.features":["x"]}},"annotations":{{"org.opencontainers.image.ref.name":"1"}}}},{{"mediaType":"{docker}distribution.manifest.v2+json","digest":"{digest}","size":7,"platform":{{"architecture":"arm64","os":"linux"}}}}]}}"#
    );
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{{"User":"1:2","Env":["A=b"],"Entrypoint":["/x"],"Cmd":["y"],"WorkingDir":"/w","StopSignal":"SIGRTMIN+3","Labels":{{"a":"b"}},"ExposedPorts":{{"80/tcp":{{}}}},"Volumes":{{"/v":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
    );
    let saved = format!(
        r#"[{{"Config":"{HEX}.json","RepoTags":["a/b:1"],"Layers":["{HEX}/layer.tar","{HEX}.tar"]}}]"#
    );
    let samples: [(&str, &[String]); 7] = [
        (
            "manifest",
            &[
                manifest(
                    &format!("{oci}manifest.v1+json"),
                    &format!("{oci}config.v1+json"),
                    &format!("{oci}layer.v1.tar+gzip"),
                ),
                manifest(
                    &format!("{docker}distribution.manifest.v2+json"),
                    &format!("{docker}container.image.v1+json"),
                    &format!("{docker}image.rootfs.diff.tar.gzip"),
                ),
                index,
                saved,
                format!(
                    r#"{{"schemaVersion":2,"layers":[{{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"{digest}","size":7,"annotations":{{"dev.cosignproject.cosign/signature":"c2ln"}}}}]}}"#
                ),
            ],
        ),
        ("config", &[config, r#"{"architecture":"amd64","os":"linux","rootfs":{}}"#.to_owned()]),
        (
            "reference",
            &[
                "docker://registry.example:5000/a/b:tag".to_owned(),
                format!("docker://[::1]:5000/a/b@{digest}"),
                "oci-archive:/a/b:tag".to_owned(),
                "docker-archive:/a/b:c/d:1".to_owned(),
                "https://example.org:8443/a%20b?c=d#e".to_owned(),
                "disk:/a/b".to_owned(),
                "rootfs:/a".to_owned(),
                "a/b_c.d+e:1".to_owned(),
                digest.clone(),
            ],
        ),
        (
            "header",
            &[
                "https://registry.example:5000/a/b?c=d#e\n/f?g".to_owned(),
                "http://[::1]/\n//other.example/".to_owned(),
                "Bearer realm=\"https://a.example/token\",service=\"s\", Basic realm=x\nNegotiate YQ=="
                    .to_owned(),
                "bytes 5-9/10".to_owned(),
                "bytes 5-9/*".to_owned(),
            ],
        ),
        (
            "vnc_client",
            &[
                // In, with ZRLE, a whole picture, a key, a click, a clipboard (RFC 6143, 7.5).
                "RFB 003.008\n\x01\x01\x02\0\0\x01\0\0\0\x10\x03\0\0\0\0\0\x02\0\x01\x10\
                 \x04\x01\0\0\0\0\0a\x05\x01\0\x09\0\x09\x06\0\0\0\0\0\0\x02ab"
                    .to_owned(),
                "RFB 003.003\n\x01".to_owned(),
            ],
        ),
        (
            "vnc_guest",
            &[
                "\x1b[2J\x1b[H\x1b[1;32mDebian\x1b[0m\r\n\x1b(0lqk\x1b(B \x1b[38;5;208mx\x1b[48;2;1;2;3my\x1b[K"
                    .to_owned(),
                "\x1b[5;20r\x1b[3L\x1b[r\x1b[?1049h\x1b[?2004h\x1b[6n\x1b[c\x1b]52;c;YQ==\x07\x1bPq#0\x1b\\ü語"
                    .to_owned(),
            ],
        ),
        (
            "answer",
            &[
                r#"{"refused":{"entry":"a","why":{"header":"wrong checksum"}}}"#.to_owned(),
                r#"{"refused":{"entry":null,"why":{"limit":"entries"}}}"#.to_owned(),
                r#"{"failed":{"entry":"a","op":"write","errno":28}}"#.to_owned(),
                r#"{"unusable":{"step":"x","errno":1}}"#.to_owned(),
                format!(
                    r#"{{"done":{{"diff_id":"{digest}","bytes":9,"headers":1,"compression":"gzip","report":{{"entries":1,"bytes":5,"devices_skipped":0,"xattrs_dropped":0,"aufs_skipped":0,"implied_dirs":0}}}}}}"#
                ),
            ],
        ),
    ];
    for (target, texts) in samples {
        for (n, text) in texts.iter().enumerate() {
            put(&dir.join(target).join(n.to_string()), text.as_bytes())?;
        }
    }
    Ok(())
}

fn disks(work: &Path, dir: &Path) -> Result<()> {
    let ext = [
        ("ext4", "mke2fs -q -F -t ext4 -b 1024 -N 120 -d root disk"),
        ("ext4-inline", "mke2fs -q -F -t ext4 -O inline_data -b 1024 -N 120 -d root disk"),
        ("ext2", "mke2fs -q -F -t ext2 -b 1024 -N 120 -d root disk"),
    ];
    for (name, line) in ext {
        make_disk(work, 1 << 20, line)?;
        thin(&work.join("disk"), &dir.join("disk").join(name))?;
    }
    for (name, options) in [("btrfs", "--mixed"), ("btrfs-small-nodes", "--mixed -n 4096")] {
        make_disk(work, 32 << 20, &format!("mkfs.btrfs -q {options} --rootdir root disk"))?;
        thin(&work.join("disk"), &dir.join("disk").join(name))?;
    }
    put(&work.join("source"), b"x\n")?;
    let mut text = String::from("/\n0 0\nd--755 0 0\netc d--755 0 0\n");
    text += "os-release ---644 0 0 source\nsoft l--777 0 0 os-release\n";
    text += &format!("long l--777 0 0 {}\n$\nmany d--755 0 0\n", "l".repeat(600));
    for n in 0..70 {
        text += &format!("file-number-{n:04} ---644 0 0 source\n");
    }
    text += "$\ndev d--755 0 0\nnull c--666 0 0 1 3\n$\n$\n";
    put(&work.join("proto"), text.as_bytes())?;
    for (name, options) in [
        ("xfs", "-b size=4096"),
        ("xfs-small-blocks", "-b size=1024"),
        ("xfs-version-4", "-m crc=0 -b size=1024"),
    ] {
        make_disk(work, 300 << 20, &format!("mkfs.xfs -q -f {options} -p proto disk"))?;
        thin(&work.join("disk"), &dir.join("disk").join(name))?;
    }
    make_disk(work, 1 << 20, "mke2fs -q -F -t ext2 -b 1024 -N 120 -d root disk")?;
    let small = fs::read(work.join("disk")).context("read a disk")?;
    for (name, table) in [("gpt", "label: gpt\n,2048"), ("mbr", "label: dos\n,2048,E\n,2048")] {
        put(&work.join("table"), format!("{table}\n").as_bytes())?;
        let file = File::create(work.join("disk")).context("make a disk")?;
        file.set_len(8 << 20).context("make a disk")?;
        let stdin = File::open(work.join("table")).context("read a table")?;
        run(program("sfdisk").args(["-q", "disk"]).stdin(stdin).current_dir(work))?;
        std::os::unix::fs::FileExt::write_all_at(&file, &small, 1 << 20).context("fill a disk")?;
        thin(&work.join("disk"), &dir.join("disk").join(name))?;
    }
    Ok(())
}

fn make_disk(work: &Path, size: u64, line: &str) -> Result<()> {
    let file = File::create(work.join("disk")).context("make a disk")?;
    file.set_len(size).context("make a disk")?;
    tool(work, line)
}

/// Writes the form that the target reads: the number of sectors, then of each sector that is not zero its number and
/// bytes (`datastore/src/diskimage/fuzzing.rs`).
fn thin(disk: &Path, to: &Path) -> Result<()> {
    let mut whole = Vec::new();
    let read = |whole: &mut Vec<u8>| File::open(disk)?.read_to_end(whole);
    read(&mut whole).with_context(|| format!("read {}", disk.display()))?;
    let mut out = u32::try_from(whole.len() / 512)?.to_le_bytes().to_vec();
    for (number, sector) in (0u32..).zip(whole.as_chunks::<512>().0) {
        if *sector != [0; 512] {
            out.extend(number.to_le_bytes());
            out.extend(sector);
        }
    }
    put(to, &out)
}

fn qcow2(work: &Path, dir: &Path) -> Result<()> {
    let mut bytes = vec![0; 64 << 10];
    for (n, byte) in bytes[..8 << 10].iter_mut().enumerate() {
        *byte = u8::try_from(n % 7 * 30)?;
    }
    put(&work.join("raw"), &bytes)?;
    let small = "cluster_size=512";
    for (name, compress, options) in [
        ("version-2", false, "compat=0.10,cluster_size=512"),
        ("version-3", false, small),
        ("compressed", true, small),
        ("zstd", true, "cluster_size=4096,compression_type=zstd"),
        ("extended", false, "cluster_size=16384,extended_l2=on"),
    ] {
        let to = dir.join("qcow2").join(name).display().to_string();
        let mut convert = program("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2", "-o", options]);
        if compress {
            convert.arg("-c");
        }
        run(convert.args(["raw", &to]).current_dir(work))?;
    }
    let to = dir.join("qcow2/backing").display().to_string();
    let options = "-u -o cluster_size=512 -b backing -F raw";
    tool(work, &format!("qemu-img create -q -f qcow2 {options} {to} 64K"))
}

/// Context disks without their system area, which nothing reads.
fn isos(work: &Path, dir: &Path) -> Result<()> {
    let files = work.join("context");
    fs::create_dir_all(files.join("openstack/latest")).context("fill a context disk")?;
    put(&files.join("context.sh"), b"# x\nA='b '\\''c'\\'''\nB='two\nlines'\n")?;
    put(&files.join("openstack/latest/meta_data.json"), b"{}")?;
    put(&files.join(format!("{}.txt", "n".repeat(100))), b"x")?;
    for (name, line) in [
        ("joliet", "xorriso -as mkisofs -quiet -V CONTEXT -J -R -o iso context"),
        ("names", "genisoimage -quiet -V CONTEXT -R -o iso context"),
        ("plain", "genisoimage -quiet -V CONTEXT -o iso context"),
    ] {
        tool(work, line)?;
        let whole = fs::read(work.join("iso")).context("read a context disk")?;
        put(&dir.join("iso").join(name), whole.get(32 << 10..).context("a short context disk")?)?;
    }
    Ok(())
}
