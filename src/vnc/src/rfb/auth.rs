//! Who may come in: VNC authentication (RFC 6143, section 7.2.2), and what slows guessing down.
//!
//! The scheme is weak: DES with eight characters, and all after it in clear. It keeps the curious out; who needs more
//! puts a tunnel before it. What can be done is done: a challenge of random bytes for each connection, comparison in
//! constant time, and a book of those who failed. Each failure of an address lets the next answer wait twice as long;
//! after [`MOST_FAILURES`] the address is turned away for [`PENANCE`], before it sees a challenge. The book has few pages:
//! when it is full the oldest entry goes, but then the failures of all are counted together, so that many addresses
//! guess no faster than [`MOST_FAILURES`] each.
//!
//! A success clears the address, and nothing tells a wrong password from anything else that is wrong: there are no users.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use des::Des;
use des::cipher::{Block, BlockCipherEncrypt, KeyInit};
use zeroize::Zeroizing;

/// Longest password, bytes; what is beyond would not count.
pub const MAX_PASSWORD: usize = 8;
/// Bytes of a challenge and of the response to it.
pub const CHALLENGE: usize = 16;
/// After so many failures an address is turned away.
pub const MOST_FAILURES: u32 = 8;
/// For so long; and this long after its last failure an address is forgotten.
pub const PENANCE: Duration = Duration::from_secs(60);
/// How long the answer to the first failure waits.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// Longest delay of an answer.
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// Addresses that are remembered.
const MOST_ENTRIES: usize = 64;

/// What a client has to know to come in.
#[derive(Clone)]
pub enum Secret {
    /// Nothing.
    None,
    /// A password.
    Password(Password),
}

/// A password as DES key. It does not show itself.
#[derive(Clone)]
pub struct Password(Zeroizing<[u8; MAX_PASSWORD]>);

/// A password that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPassword {
    /// It would let everybody in who tries.
    #[error("the password is empty")]
    Empty,
    /// The rest would be ignored without anybody noticing.
    #[error("the password has more than {MAX_PASSWORD} bytes, and VNC uses no more")]
    TooLong,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password(_) => "Password(…)",
        })
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Password {
    /// Takes a password.
    ///
    /// # Errors
    /// It is empty or too long.
    pub fn new(text: &[u8]) -> Result<Self, BadPassword> {
        if text.is_empty() {
            return Err(BadPassword::Empty);
        }
        let mut key = Zeroizing::new([0; MAX_PASSWORD]);
        let places = key.get_mut(..text.len()).ok_or(BadPassword::TooLong)?;
        // VNC takes the bits of each byte the other way round (RFC 6143, errata 4951).
        places.iter_mut().zip(text).for_each(|(place, byte)| *place = byte.reverse_bits());
        Ok(Self(key))
    }

    /// What somebody who knows it answers.
    #[must_use]
    pub fn response(&self, challenge: [u8; CHALLENGE]) -> [u8; CHALLENGE] {
        let cipher = Des::new((&*self.0).into());
        let mut response = challenge;
        for half in response.chunks_exact_mut(8) {
            let mut block = Block::<Des>::default();
            block.copy_from_slice(half);
            cipher.encrypt_block(&mut block);
            half.copy_from_slice(&block);
        }
        response
    }

    /// Whether it is the right response; takes as long if it is not.
    #[must_use]
    pub fn accepts(&self, challenge: [u8; CHALLENGE], response: [u8; CHALLENGE]) -> bool {
        let right = self.response(challenge);
        let differences = right.iter().zip(response).fold(0, |bits, (a, b)| {
            // The compiler must not see that one difference is enough.
            std::hint::black_box(bits | (a ^ b))
        });
        differences == 0
    }
}

/// A fresh challenge.
///
/// # Errors
/// The kernel has no random bytes.
pub fn challenge() -> std::io::Result<[u8; CHALLENGE]> {
    let mut bytes = [0; CHALLENGE];
    // Up to 256 bytes come whole (getrandom(2)).
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    if got == CHALLENGE { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// The book of failures.
#[derive(Debug, Default)]
pub struct Book {
    entries: Vec<Entry>,
    /// Of those whose entries had to go.
    others: Option<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    who: IpAddr,
    failures: u32,
    last: Instant,
}

impl Entry {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= PENANCE
    }
}

impl Book {
    /// Whether somebody from there may try.
    pub fn admits(&mut self, address: IpAddr, now: Instant) -> bool {
        self.forget(now);
        let who = network(address);
        let known = self.entries.iter().find(|entry| entry.who == who).or(self.others.as_ref());
        known.is_none_or(|entry| entry.failures < MOST_FAILURES)
    }

    /// Notes a failure; returns how long to wait before saying so.
    pub fn failed(&mut self, address: IpAddr, now: Instant) -> Duration {
        self.forget(now);
        let who = network(address);
        let failures = match self.entries.iter_mut().find(|entry| entry.who == who) {
            Some(entry) => {
                entry.failures = entry.failures.saturating_add(1);
                entry.last = now;
                entry.failures
            }
            None => {
                if self.entries.len() >= MOST_ENTRIES {
                    self.make_room();
                }
                self.entries.push(Entry { who, failures: 1, last: now });
                1
            }
        };
        let doubled = FIRST_DELAY.saturating_mul(1 << (failures - 1).min(16));
        doubled.min(LONGEST_DELAY)
    }

    /// Somebody from there knew the password.
    pub fn succeeded(&mut self, address: IpAddr) {
        let who = network(address);
        self.entries.retain(|entry| entry.who != who);
    }

    fn forget(&mut self, now: Instant) {
        self.entries.retain(|entry| !entry.is_over(now));
        self.others = self.others.filter(|entry| !entry.is_over(now));
    }

    fn make_room(&mut self) {
        let oldest = (0..self.entries.len()).min_by_key(|&at| self.entries[at].last);
        let Some(oldest) = oldest.map(|at| self.entries.swap_remove(at)) else { return };
        let before = self.others.map_or(0, |entry| entry.failures);
        let last = self.others.map_or(oldest.last, |entry| entry.last.max(oldest.last));
        let failures = before.saturating_add(oldest.failures);
        self.others = Some(Entry { who: oldest.who, failures, last });
    }
}

/// Who has one address of IPv6 has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &[u8]) -> Password {
        Password::new(text).unwrap()
    }

    #[test]
    fn responses_are_those_of_vnc() {
        // DES of FIPS 46 with the mirrored key; computed once by another implementation (OpenSSL).
        let challenge: [u8; 16] = std::array::from_fn(|n| n as u8);
        let response = password(b"secret12").response(challenge);
        assert_eq!(u128::from_be_bytes(response), 0xadcd_997f_8e16_fee5_75e9_73f9_3c2b_62b4);
        let response = password(b"a").response(challenge);
        assert_eq!(u128::from_be_bytes(response), 0x4494_07fb_6f71_bd51_7aca_7686_6568_a4e2);
    }

    #[test]
    fn only_the_right_response_is_accepted() {
        let (right, challenge) = (password(b"secret"), [7; 16]);
        let response = right.response(challenge);
        assert!(right.accepts(challenge, response));
        assert!(!right.accepts([8; 16], response));
        assert!(!password(b"secres").accepts(challenge, response));
        for at in 0..16 {
            let mut wrong = response;
            wrong[at] ^= 1;
            assert!(!right.accepts(challenge, wrong), "{at}");
        }
    }

    #[test]
    fn passwords_are_of_one_to_eight_bytes_and_never_shown() {
        assert_eq!(Password::new(b"").unwrap_err(), BadPassword::Empty);
        assert_eq!(Password::new(b"123456789").unwrap_err(), BadPassword::TooLong);
        assert_eq!(format!("{:?}", Secret::Password(password(b"12345678"))), "Password(…)");
    }

    #[test]
    fn challenges_differ() {
        assert_ne!(challenge().unwrap(), challenge().unwrap());
    }

    const V4: &str = "192.0.2.7";

    fn fail(book: &mut Book, address: &str, now: Instant) -> u128 {
        book.failed(address.parse().unwrap(), now).as_millis()
    }

    fn admits(book: &mut Book, address: &str, now: Instant) -> bool {
        book.admits(address.parse().unwrap(), now)
    }

    #[test]
    fn failures_cost_more_and_more_time_and_then_the_door_is_shut() {
        let (mut book, now) = (Book::default(), Instant::now());
        let delays: Vec<u128> = (0..8).map(|_| fail(&mut book, V4, now)).collect();
        assert_eq!(delays, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert!(!admits(&mut book, V4, now));
        assert!(
            !admits(&mut book, "::ffff:192.0.2.7", now),
            "the same, as a socket for both sees it"
        );
        assert!(admits(&mut book, "192.0.2.8", now));
        assert!(!admits(&mut book, V4, now + PENANCE - Duration::from_millis(1)));
        assert!(admits(&mut book, V4, now + PENANCE));
    }

    #[test]
    fn a_success_clears_the_address() {
        let (mut book, now) = (Book::default(), Instant::now());
        for _ in 0..7 {
            fail(&mut book, V4, now);
        }
        book.succeeded(V4.parse().unwrap());
        assert_eq!(fail(&mut book, V4, now), 250);
    }

    #[test]
    fn neighbours_of_ipv6_are_one() {
        let (mut book, now) = (Book::default(), Instant::now());
        for n in 0..8 {
            fail(&mut book, &format!("2001:db8::{n}"), now);
        }
        assert!(!admits(&mut book, "2001:db8::ffff", now));
        assert!(admits(&mut book, "2001:db8:0:1::1", now));
    }

    #[test]
    fn a_crowd_shares_its_failures() {
        let (mut book, now) = (Book::default(), Instant::now());
        let mut crowd = |from: u32, to: u32| {
            for n in from..to {
                book.failed(IpAddr::V4(n.into()), now + Duration::from_millis(n.into()));
            }
            assert!(book.entries.len() <= MOST_ENTRIES);
            book.admits("192.0.2.200".parse().unwrap(), now + Duration::from_secs(1))
        };
        assert!(crowd(0, MOST_ENTRIES as u32 + MOST_FAILURES - 1));
        assert!(!crowd(100, 101));
        assert!(
            book.admits("192.0.2.200".parse().unwrap(), now + PENANCE + Duration::from_secs(1))
        );
    }
}
