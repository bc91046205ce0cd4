//! The tree of scripts that belongs below `/var/lib/one/remotes`.

/// A file of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script {
    /// Where, below `remotes`.
    pub path: &'static str,
    /// Its permissions.
    pub mode: u32,
    /// What is in it.
    pub text: &'static str,
}

/// Files by path, as the build found them in `driver-scripts/opennebula/remotes`.
const REMOTES: &[(&str, u32, &str)] = include!(concat!(env!("OUT_DIR"), "/remotes.rs"));

/// All, sorted by path.
pub fn scripts() -> Vec<Script> {
    REMOTES.iter().map(|&(path, mode, text)| Script { path, mode, text }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_that_of_the_source() {
        let scripts = scripts();
        let deploy = scripts.iter().find(|script| script.path == "vmm/ocivisor/deploy").unwrap();
        assert!(deploy.text.starts_with("#!/bin/sh\n"));
        assert_eq!(deploy.mode, 0o755);
        assert!(scripts.iter().all(|s| !s.path.starts_with('/') && !s.path.contains("..")));
    }
}
