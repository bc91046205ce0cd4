//! Netlink messages as bytes: building requests, walking replies. netlink(7), rtnetlink(7).
//!
//! Made by hand and not with a packet library: half a dozen messages are needed, replies must
//! never fail to parse because some other link of the host has an attribute that a library's
//! version does not know, and the kernel's explanation of an error sits in a part of the message
//! that the packet libraries leave to their users.

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// Attributes flagged as nests (include/uapi/linux/netlink.h).
const NESTED: u16 = libc::NLA_F_NESTED as u16;
/// Bits of an attribute's type that are the type.
const TYPE_MASK: u16 = libc::NLA_TYPE_MASK as u16;

fn align(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A request under construction.
#[derive(Debug, Clone)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A message of that type with `NLM_F_*` flags besides `NLM_F_REQUEST`, and its fixed part.
    pub(super) fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes).raw(fixed)
    }

    /// Bytes without an attribute's header: the fixed part of a message or of some nests.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// One attribute.
    pub(super) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        // Values are names, addresses and numbers: far below the 64 KiB of the length field.
        let len = (4 + value.len()) as u16;
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    /// A number.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A text with its terminating zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An attribute that holds attributes.
    pub(super) fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self = fill(self.attr(kind | NESTED, &[]));
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// The finished bytes, with its number.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: i32,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

/// The messages of one datagram; stops at the first that is cut short.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = number(bytes.get(0..4)?)? as usize;
        let payload = bytes.get(HEADER..len)?;
        let message = Received {
            kind: short(&bytes[4..6])?,
            flags: short(&bytes[6..8])?.into(),
            sequence: number(&bytes[8..12])?,
            payload,
        };
        bytes = bytes.get(align(len)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`, by type and value; stops at the first that is cut short.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(short(bytes.get(0..2)?)?);
        let kind = short(bytes.get(2..4)?)? & TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn short(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

/// A 32-bit number, if that is what the value is.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// A text without its terminating zero.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_padded_and_nests_have_the_length_of_what_they_hold() {
        let message = Message::new(16, libc::NLM_F_ACK, &[9; 3])
            .text(3, "ab")
            .nest(18, |m| m.number(1, 7).attr(2, &[5]));
        let bytes = message.finish(42);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].kind, all[0].flags, all[0].sequence), (16, 5, 42));
        assert_eq!(all[0].payload[..4], [9, 9, 9, 0]);
        let attrs: Vec<_> = attributes(&all[0].payload[4..]).collect();
        assert_eq!(attrs[0], (3, &b"ab\0"[..]));
        let inner: Vec<_> = attributes(attrs[1].1).collect();
        assert_eq!(attrs[1].0, 18);
        assert_eq!(inner, [(1, &7_u32.to_ne_bytes()[..]), (2, &[5][..])]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let walked: usize = messages(&bytes).map(|m| m.payload.len() + HEADER).sum();
            prop_assert!(walked <= bytes.len());
            let walked: usize = attributes(&bytes).map(|(_, v)| v.len() + 4).sum();
            prop_assert!(walked <= bytes.len());
        }
    }
}
