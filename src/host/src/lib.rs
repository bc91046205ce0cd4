//! Linux adapters of the core's ports.
//!
//! One module per port, synchronous throughout. Each adapter finds its things again by name alone
//! (paths of [`layout`], cgroup names, interface aliases), so that a crash between any two system
//! calls is mended by running `ensure_*` or `drop_*` again.
//!
//! Process creation lives in [`command`] (and in `guests` for shims), durable file writes in [`fs`].
//! Tools that read foreign bytes run without rights, [`confine`].

pub mod cgroup;
pub mod command;
pub mod confine;
pub mod fs;
pub mod guests;
pub mod labels;
pub mod layout;
pub mod network;
pub mod process;
pub mod stats;
pub mod storage;
