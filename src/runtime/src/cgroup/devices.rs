//! Which devices a guest may open, as a program on its cgroup v2.
//!
//! On v1 the OCI runtime writes the rules to the devices controller. cgroup v2 has none: there the
//! kernel asks a program at each open and mknod (kernel documentation, cgroup-v2, "Device controller").
//! The rules become straight code, last one first, and the first that fits decides, as on v1.
//!
//! runc attaches its own; this one serves the embedded runtime, which was built without that part
//! because it needs libelf for what are three dozen instructions.

use std::fs::File;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use ocivisor_core::error::{Error, ErrorKind, Result};

use crate::sys;

// Bits of the request, linux/bpf.h.
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_ALL: i32 = ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE;

// Registers; r1 comes with the request.
const RESULT: u64 = 0;
const REQUEST: u64 = 1;
const TYPE: u64 = 2;
const ACCESS: u64 = 3;
const MAJOR: u64 = 4;
const MINOR: u64 = 5;

/// Attaches the program for these rules.
///
/// # Errors
/// `Host`: the kernel refuses. `Unsupported`: a rule that no profile of ours has.
pub fn restrict(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let program = program(rules)?;
    let attached = File::open(cgroup).and_then(|dir| sys::attach_device_program(&program, dir));
    attached.map_err(|e| {
        Error::new(ErrorKind::Host, format!("restrict devices of {}: {e}", cgroup.display()))
    })
}

/// The instructions.
fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>> {
    let mut code = vec![
        load_word(TYPE, REQUEST, 0),
        // The low half is the type, the high half the access.
        register(0xbf, ACCESS, TYPE),
        immediate(0x54, TYPE, 0xffff),
        immediate(0x74, ACCESS, 16),
        load_word(MAJOR, REQUEST, 4),
        load_word(MINOR, REQUEST, 8),
    ];
    for rule in rules.iter().rev() {
        let part = rule_code(rule)?;
        code.extend(&part);
        if part == verdict(rule.allow()) {
            // Fits everything. The kernel refuses a program with code that is never reached.
            return Ok(code);
        }
    }
    code.extend(verdict(false));
    Ok(code)
}

fn rule_code(rule: &LinuxDeviceCgroup) -> Result<Vec<u64>> {
    let odd = || Error::new(ErrorKind::Unsupported, format!("device rule {rule}"));
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            'm' => ACCESS_MKNOD,
            _ => return Err(odd()),
        };
    }
    if !rule.allow() && access != ACCESS_ALL {
        // A partial refusal would have to look for any common bit.
        return Err(odd());
    }
    // Each test jumps over the rest of the rule; the distance is known at the end.
    let mut tests = Vec::new();
    match rule.typ() {
        None | Some(LinuxDeviceType::A) => {}
        Some(LinuxDeviceType::B) => tests.push(vec![unless_equal(TYPE, TYPE_BLOCK)]),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => {
            tests.push(vec![unless_equal(TYPE, TYPE_CHAR)]);
        }
        Some(LinuxDeviceType::P) => return Err(odd()),
    }
    if access != ACCESS_ALL {
        // Fits if nothing beyond is asked for. The request's register is free by now.
        tests.push(vec![
            register(0xbf, REQUEST, ACCESS),
            immediate(0x57, REQUEST, access),
            register(0x5d, REQUEST, ACCESS),
        ]);
    }
    for (number, at) in [(rule.major(), MAJOR), (rule.minor(), MINOR)] {
        match number {
            None => {}
            Some(number) if number < 0 => {}
            Some(number) => {
                let number = i32::try_from(number).map_err(|_| odd())?;
                tests.push(vec![unless_equal(at, number)]);
            }
        }
    }
    let mut code: Vec<u64> = Vec::new();
    let mut jumps = Vec::new();
    for test in tests {
        code.extend(test);
        jumps.push(code.len() - 1);
    }
    code.extend(verdict(rule.allow()));
    let end = code.len();
    for jump in jumps {
        code[jump] |= ((end - jump - 1) as u64) << 16;
    }
    Ok(code)
}

fn verdict(allow: bool) -> [u64; 2] {
    [immediate(0xb7, RESULT, i32::from(allow)), 0x95]
}

fn load_word(to: u64, from: u64, offset: u64) -> u64 {
    0x61 | to << 8 | from << 12 | offset << 16
}

fn register(operation: u64, to: u64, from: u64) -> u64 {
    operation | to << 8 | from << 12
}

fn immediate(operation: u64, to: u64, value: i32) -> u64 {
    operation | to << 8 | u64::from(value.cast_unsigned()) << 32
}

fn unless_equal(what: u64, value: i32) -> u64 {
    immediate(0x55, what, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    fn rule(
        allow: bool,
        typ: Option<LinuxDeviceType>,
        numbers: (i64, Option<i64>),
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).access(access);
        if let Some(typ) = typ {
            rule = rule.typ(typ).major(numbers.0);
            if let Some(minor) = numbers.1 {
                rule = rule.minor(minor);
            }
        }
        rule.build().unwrap()
    }

    /// Runs the few instructions that are used.
    fn run(code: &[u64], typ: i32, access: i32, major: u32, minor: u32) -> bool {
        let request = [(access << 16 | typ).cast_unsigned(), major, minor];
        let (mut r, mut at) = ([0_u64; 8], 0_usize);
        for _ in 0..1000 {
            let word = code[at];
            let (op, to, from) =
                (word & 0xff, (word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, value) = ((word >> 16 & 0xffff) as usize, word >> 32);
            at += 1;
            match op {
                0x61 => r[to] = request[offset / 4].into(),
                0xbf => r[to] = r[from],
                0xb7 => r[to] = value,
                0x54 | 0x57 => r[to] &= value,
                0x74 => r[to] = (r[to] & 0xffff_ffff) >> value,
                0x55 if r[to] != value => at += offset,
                0x5d if r[to] != r[from] => at += offset,
                0x55 | 0x5d => {}
                0x95 => return r[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
        panic!("no end");
    }

    #[test]
    fn the_last_fitting_rule_decides() {
        let char = Some(LinuxDeviceType::C);
        let code = program(&[
            rule(true, char, (9, None), "rwm"),
            rule(false, None, (0, None), "rwm"),
            rule(true, char, (1, Some(3)), "rwm"),
            rule(true, char, (136, None), "rw"),
        ])
        .unwrap();
        let read_write = ACCESS_READ | ACCESS_WRITE;
        for (typ, access, major, minor, want) in [
            (TYPE_CHAR, read_write, 1, 3, true),
            (TYPE_CHAR, ACCESS_MKNOD, 1, 3, true),
            (TYPE_CHAR, ACCESS_READ, 1, 5, false),
            (TYPE_BLOCK, ACCESS_READ, 1, 3, false),
            (TYPE_CHAR, ACCESS_READ, 136, 77, true),
            (TYPE_CHAR, ACCESS_MKNOD, 136, 77, false),
            (TYPE_CHAR, ACCESS_ALL, 136, 77, false),
            (TYPE_CHAR, ACCESS_READ, 9, 0, false),
            (TYPE_BLOCK, ACCESS_WRITE, 8, 0, false),
        ] {
            assert_eq!(
                run(&code, typ, access, major, minor),
                want,
                "{typ} {access} {major}:{minor}"
            );
        }
        assert!(!run(&program(&[]).unwrap(), TYPE_CHAR, ACCESS_READ, 1, 3));
    }

    #[test]
    fn rules_that_cannot_be_expressed_are_refused() {
        assert!(program(&[rule(false, None, (0, None), "w")]).is_err());
        assert!(program(&[rule(true, None, (0, None), "x")]).is_err());
    }

    /// On the real kernel, in the unified hierarchy, which hybrid hosts have too.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a process to be restricted")]
    fn the_kernel_keeps_to_the_program() {
        use std::io::Write;
        use std::process::{Command, Stdio};

        struct Group(std::path::PathBuf);
        impl Drop for Group {
            fn drop(&mut self) {
                // Best effort, also after a failure.
                let _ = std::fs::remove_dir(&self.0);
            }
        }
        let mount = crate::cgroup::unified_mount().unwrap().unwrap();
        let group = Group(mount.join(format!("ocivisor-test-devices-{}", std::process::id())));
        std::fs::create_dir(&group.0).unwrap();
        let char = Some(LinuxDeviceType::C);
        let rules = [
            rule(false, None, (0, None), "rwm"),
            rule(true, char, (1, Some(3)), "rwm"),
            rule(true, char, (1, Some(5)), "r"),
        ];
        restrict(&group.0, &rules).unwrap();
        let script = "read go; for d in null zero full; do (: < /dev/$d) 2>&- && echo r $d; \
             (: > /dev/$d) 2>&- && echo w $d; done; true";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut procs =
            std::fs::OpenOptions::new().write(true).open(group.0.join("cgroup.procs")).unwrap();
        procs.write_all(shell.id().to_string().as_bytes()).unwrap();
        shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let out = shell.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), "r null\nw null\nr zero\n");
    }
}
