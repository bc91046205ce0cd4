use std::time::Duration;

use super::*;
use crate::rfb::auth::{MOST_FAILURES, Password};

struct House {
    secret: Secret,
    book: Book,
    room: bool,
    now: Instant,
}

/// One client's way through the door.
struct Guest {
    handshake: Handshake,
    out: Vec<u8>,
}

impl House {
    fn new(secret: Secret) -> Self {
        Self { secret, book: Book::default(), room: true, now: Instant::now() }
    }

    fn with_password() -> Self {
        Self::new(Secret::Password(Password::new(b"secret").unwrap()))
    }

    fn visit(&mut self) -> Guest {
        let mut out = Vec::new();
        let handshake = Handshake::new(&mut out);
        assert_eq!(std::mem::take(&mut out), GREETING);
        Guest { handshake, out }
    }

    /// Sends bytes one by one; returns what came back and how far it is.
    fn say(&mut self, guest: &mut Guest, bytes: &[u8]) -> (Vec<u8>, Progress) {
        let mut progress = Progress::Waiting;
        let pieces: Vec<&[u8]> =
            if bytes.is_empty() { vec![bytes] } else { bytes.chunks(1).collect() };
        for piece in pieces {
            assert_eq!(progress, Progress::Waiting);
            assert!(guest.handshake.wants() >= piece.len(), "nothing more is wanted");
            let address = "192.0.2.7".parse().unwrap();
            let (secret, book) = (&self.secret, &mut self.book);
            let mut door = Door { secret, book, address, room: self.room };
            progress = guest.handshake.go_on(piece, &mut door, self.now, &mut guest.out);
        }
        (std::mem::take(&mut guest.out), progress)
    }

    fn response(&self, challenge: &[u8]) -> [u8; 16] {
        match &self.secret {
            Secret::Password(password) => password.response(challenge.try_into().unwrap()),
            Secret::None => panic!("no password"),
        }
    }
}

const WAITING: Progress = Progress::Waiting;

fn refused(refusal: Refusal) -> Progress {
    Progress::Refused(refusal)
}

fn reason(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn all_versions_come_in_without_security() {
    let (none, ok) = (&[1, 1][..], [0; 4]);
    for (version, security, choice, result) in [
        ("RFB 003.003\n", &[0, 0, 0, 1][..], &b""[..], &b""[..]),
        ("RFB 003.005\n", &[0, 0, 0, 1], b"", b""),
        ("RFB 003.007\n", none, &[1], b""),
        ("RFB 003.008\n", none, &[1], &ok),
        ("RFB 003.889\n", none, &[1], &ok),
        ("RFB 004.001\n", none, &[1], &ok),
    ] {
        let mut house = House::new(Secret::None);
        let mut guest = house.visit();
        assert_eq!(
            house.say(&mut guest, version.as_bytes()),
            (security.to_vec(), WAITING),
            "{version}"
        );
        if !choice.is_empty() {
            assert_eq!(house.say(&mut guest, choice), (result.to_vec(), WAITING), "{version}");
        }
        let wanted = Progress::In(Sharing::Exclusive);
        assert_eq!(house.say(&mut guest, &[0]), (vec![], wanted), "{version}");
        assert_eq!(guest.handshake.wants(), 0);
    }
}

#[test]
fn all_versions_come_in_with_the_password() {
    for (version, security, choice) in [
        ("RFB 003.003\n", &[0, 0, 0, 2][..], &b""[..]),
        ("RFB 003.007\n", &[1, 2], &[2]),
        ("RFB 003.008\n", &[1, 2], &[2]),
    ] {
        let mut house = House::with_password();
        let mut guest = house.visit();
        let (mut said, _) = house.say(&mut guest, version.as_bytes());
        assert_eq!(said[..security.len()], *security, "{version}");
        let mut challenge = said.split_off(security.len());
        if !choice.is_empty() {
            challenge = house.say(&mut guest, choice).0;
        }
        let response = house.response(&challenge);
        assert_eq!(house.say(&mut guest, &response), (vec![0; 4], WAITING), "{version}");
        let wanted = Progress::In(Sharing::Shared);
        assert_eq!(house.say(&mut guest, &[1]), (vec![], wanted), "{version}");
    }
}

#[test]
fn a_wrong_password_is_told_late_and_the_same_in_any_case() {
    for (version, choice, failure) in [
        ("RFB 003.003\n", &b""[..], vec![0, 0, 0, 1]),
        ("RFB 003.007\n", &[2], vec![0, 0, 0, 1]),
        ("RFB 003.008\n", &[2], [vec![0, 0, 0, 1], reason("authentication failed")].concat()),
    ] {
        let mut house = House::with_password();
        let mut guest = house.visit();
        house.say(&mut guest, version.as_bytes());
        if !choice.is_empty() {
            house.say(&mut guest, choice);
        }
        assert_eq!(house.say(&mut guest, &[0; 16]), (vec![], WAITING), "{version}");
        assert_eq!(guest.handshake.deadline(), Some(house.now + Duration::from_millis(250)));
        assert_eq!(guest.handshake.wants(), 0);
        house.now += Duration::from_millis(249);
        assert_eq!(house.say(&mut guest, &[]), (vec![], WAITING));
        house.now += Duration::from_millis(1);
        assert_eq!(
            house.say(&mut guest, &[]),
            (failure, refused(Refusal::WrongPassword)),
            "{version}"
        );
    }
}

#[test]
fn who_failed_too_often_sees_no_challenge() {
    let mut house = House::with_password();
    for _ in 0..MOST_FAILURES {
        let mut guest = house.visit();
        house.say(&mut guest, b"RFB 003.008\n");
        house.say(&mut guest, &[2]);
        house.say(&mut guest, &[0; 16]);
    }
    let text = "too many authentication failures, try again later";
    for (version, none) in [("RFB 003.008\n", vec![0]), ("RFB 003.003\n", vec![0; 4])] {
        let mut guest = house.visit();
        let wanted = ([none, reason(text)].concat(), refused(Refusal::TooManyFailures));
        assert_eq!(house.say(&mut guest, version.as_bytes()), wanted);
        assert_eq!(guest.handshake.wants(), 0);
    }
}

#[test]
fn a_full_house_is_for_who_wants_it_alone_and_knows_the_password() {
    for (wish, end) in [
        (1, refused(Refusal::TooManyClients)),
        (255, refused(Refusal::TooManyClients)),
        (0, Progress::In(Sharing::Exclusive)),
    ] {
        let mut house = House::with_password();
        house.room = false;
        let mut guest = house.visit();
        house.say(&mut guest, b"RFB 003.008\n");
        let (challenge, _) = house.say(&mut guest, &[2]);
        let response = house.response(&challenge);
        assert_eq!(house.say(&mut guest, &response), (vec![0; 4], WAITING));
        assert_eq!(house.say(&mut guest, &[wish]), (vec![], end));
        assert_eq!(guest.handshake.wants(), 0);
    }
}

#[test]
fn the_password_cannot_be_passed_by() {
    let mut house = House::with_password();
    let mut guest = house.visit();
    house.say(&mut guest, b"RFB 003.008\n");
    let wanted = [vec![0, 0, 0, 1], reason("no such security type")].concat();
    assert_eq!(house.say(&mut guest, &[1]), (wanted, refused(Refusal::NoSuchSecurity)));
}

#[test]
fn other_protocols_are_refused_without_a_word() {
    for line in ["GET / HTTP/1", "RFB 003x008\n", "RFB 003.008 ", "RFB +03.008\n", "RFB 002.000\n"]
    {
        let mut house = House::new(Secret::None);
        let mut guest = house.visit();
        let wanted = (vec![], refused(Refusal::NotRfb));
        assert_eq!(house.say(&mut guest, line.as_bytes()), wanted, "{line:?}");
    }
}

#[test]
fn the_servers_words_are_those_of_the_rfc() {
    let mut out = Vec::new();
    put_server_init(640, 400, "one-42", &mut out);
    let format = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
    let wanted = [&[2, 128, 1, 144][..], &format, &[0, 0, 0, 6], b"one-42"].concat();
    assert_eq!(out, wanted);
    out.clear();
    put_server_init(1, 1, &"ä".repeat(200), &mut out);
    assert_eq!(out.len(), 24 + 254);
}
