//! Which order about a host's agent is the newest: a number beside the seat, `ticket-<number of the host>`.
//!
//! A start finds things out before it takes the seat, for up to half a minute if the daemon is away. Meanwhile there may be a newer one with
//! other orders, or a stop, which finds nobody to end. So each start and each stop draws a ticket when it begins. Who
//! has an older one than the newest neither ends an agent nor becomes it.
//!
//! An agent's ticket is in its orders, and so in its seat: from there numbers go on if the file was removed. What was drawn before a boot is
//! older than what is drawn after it, and nothing else of it matters.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};

use crate::place::Place;
use crate::{failed, seat};

/// How long others may take to draw theirs: each holds the file for a moment.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// What is wanted of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// That it is there.
    Start,
    /// That it is not.
    Stop,
}

impl Order {
    /// Both as long as each other: what is written replaces all that was there.
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start\n",
            Self::Stop => "stop \n",
        }
    }
}

/// Draws the next ticket.
///
/// # Errors
/// The host's.
pub async fn draw(place: &Place, host: u32, order: Order) -> Result<u64> {
    let (name, file) = locked(place, host).await?;
    let last = match read(&file) {
        Some((number, _)) => number,
        None => seat::ticket(place, host)?,
    };
    let number = last.saturating_add(1);
    // In one write, so that none who dies here leaves half of it.
    let text = format!("{number:020} {}", order.word());
    file.write_all_at(text.as_bytes(), 0).map_err(|e| failed("write", &place.path(&name), &e))?;
    Ok(number)
}

/// What the order was that came after this one, if one did.
///
/// # Errors
/// The host's.
pub async fn overtaken(place: &Place, host: u32, number: u64) -> Result<Option<Order>> {
    let (_, file) = locked(place, host).await?;
    Ok(read(&file).filter(|(newest, _)| *newest > number).map(|(_, order)| order))
}

async fn locked(place: &Place, host: u32) -> Result<(String, File)> {
    let (name, began) = (format!("ticket-{host}"), Instant::now());
    loop {
        if let Some(file) = place.lock(&name)? {
            return Ok((name, file));
        }
        if began.elapsed() > PATIENCE {
            let what = format!("{} is not let go of", place.path(&name).display());
            return Err(Error::new(ErrorKind::Timeout, what));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// `None` if nothing was drawn yet.
fn read(file: &File) -> Option<(u64, Order)> {
    let mut bytes = [0; 27];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (number, word) = std::str::from_utf8(&bytes).ok()?.split_once(' ')?;
    let order = [Order::Start, Order::Stop].into_iter().find(|order| order.word() == word)?;
    Some((number.parse().ok()?, order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_order_is_known_also_to_those_who_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("x")).unwrap();
        assert_eq!(overtaken(&place, 7, 0).await.unwrap(), None, "nobody drew one");
        assert_eq!(draw(&place, 7, Order::Start).await.unwrap(), 1);
        assert_eq!(draw(&place, 8, Order::Stop).await.unwrap(), 1, "hosts have their own");
        assert_eq!(overtaken(&place, 7, 1).await.unwrap(), None);
        assert_eq!(draw(&place, 7, Order::Stop).await.unwrap(), 2);
        assert_eq!(overtaken(&place, 7, 1).await.unwrap(), Some(Order::Stop));
        assert_eq!(draw(&place, 7, Order::Start).await.unwrap(), 3);
        assert_eq!(overtaken(&place, 7, 1).await.unwrap(), Some(Order::Start));
        assert_eq!(overtaken(&place, 7, 3).await.unwrap(), None);
        place.replace("ticket-7", b"").unwrap();
        assert_eq!(overtaken(&place, 7, 3).await.unwrap(), None, "none of those who come is older");
    }

    #[tokio::test]
    async fn of_those_at_once_no_two_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("x")).unwrap();
        let draw = || draw(&place, 7, Order::Start);
        let (a, b, c) = tokio::join!(draw(), draw(), draw());
        let mut drawn = [a.unwrap(), b.unwrap(), c.unwrap()];
        drawn.sort_unstable();
        assert_eq!(drawn, [1, 2, 3]);
    }
}
