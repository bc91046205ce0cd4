//! A client that is in: what it understands, what it was told, and the updates it gets.
//!
//! An update answers a request, and there is one at a time. What is said of the screen's size and of the mouse pointer
//! goes before, in updates of their own that answer nothing; so a client that waits for pixels still does.

use std::time::{Duration, Instant};

use flate2::CompressError;

use super::client::{PERIOD, Scene};
use super::encode::{Encoder, Encoding};
use super::message::{Messages, Region};
use super::pixel::PixelFormat;
use super::view::{Copying, Pixels, View};
use crate::pointer;

/// Encoding takes at most one part of the time in four, all clients together.
const REST: u32 = 3;

/// But nobody waits longer than this for a picture.
const LONGEST_REST: Duration = Duration::from_secs(2);

const COPY_RECT: i32 = 1;
const DESKTOP_SIZE: i32 = -223;
const CURSOR: i32 = -239;
const EXTENDED_DESKTOP_SIZE: i32 = -308;

const FRAMEBUFFER_UPDATE: u8 = 0;

/// What there is to know of a client that is in.
#[derive(Debug)]
pub struct Session {
    /// What it says.
    pub messages: Messages,
    format: PixelFormat,
    /// For the next update: the one on its way has the old one.
    next_format: Option<PixelFormat>,
    encoding: Encoding,
    encoder: Encoder,
    copying: Copying,
    sizes: Sizes,
    /// Whether it is to be told of the size, and why.
    size_due: Option<Reason>,
    /// Whether it wants to know how the mouse pointer looks.
    pointer_due: bool,
    view: View,
    /// The picture that was compared with the view last.
    seen: Option<u64>,
    next: Instant,
    /// What the last update took so far, until it is charged.
    spent: Option<Duration>,
}

/// Which changes of size a client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sizes {
    Fixed,
    Plain,
    Extended,
}

/// Why a client is told of the size (rfbproto.rst, "ExtendedDesktopSize Pseudo-encoding").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// By itself, or because another client asked.
    Server,
    /// It asked for it.
    Client,
    /// It asked for a size that is none.
    Invalid,
}

impl Session {
    /// One with a screen of this size.
    #[must_use]
    pub fn new(pixels: Pixels, now: Instant) -> Self {
        Self {
            messages: Messages::default(),
            format: PixelFormat::NATIVE,
            next_format: None,
            encoding: Encoding::Raw,
            encoder: Encoder::default(),
            copying: Copying::Unable,
            sizes: Sizes::Fixed,
            size_due: None,
            pointer_due: false,
            view: View::new(pixels),
            seen: None,
            next: now,
            spent: None,
        }
    }

    /// It wants pixels like that.
    pub fn set_format(&mut self, format: PixelFormat) {
        self.next_format = Some(format);
    }

    /// It understands these encodings.
    pub fn understand(&mut self, wanted: &[i32]) {
        self.encoding = Encoding::choose(wanted);
        self.copying = match wanted.contains(&COPY_RECT) {
            true => Copying::Able,
            false => Copying::Unable,
        };
        let before = self.sizes;
        self.sizes = match () {
            () if wanted.contains(&EXTENDED_DESKTOP_SIZE) => Sizes::Extended,
            () if wanted.contains(&DESKTOP_SIZE) => Sizes::Plain,
            () => Sizes::Fixed,
        };
        if self.sizes == Sizes::Extended && before != Sizes::Extended {
            // That is how it learns that it may ask for another size.
            self.size_due = Some(Reason::Server);
        }
        self.pointer_due = wanted.contains(&CURSOR);
        self.seen = None;
    }

    /// It wants to see this region.
    pub fn want(&mut self, region: Region, incremental: bool) {
        self.view.want(region, incremental);
        if !incremental && self.sizes == Sizes::Extended && self.size_due.is_none() {
            self.size_due = Some(Reason::Server);
        }
        // There may be something to send although the picture is the same.
        self.seen = None;
    }

    /// It is to be told of the size.
    pub fn tell_size(&mut self, reason: Reason) {
        self.size_due = Some(reason);
        self.seen = None;
    }

    /// Whether a message of another kind may be sent now.
    #[must_use]
    pub fn is_between_updates(&self) -> bool {
        self.view.is_done()
    }

    /// From when on it is to be shown the picture of this number; `None` if it saw it or asked for nothing.
    #[must_use]
    pub fn due(&self, number: u64) -> Option<Instant> {
        let due = self.view.is_done() && self.view.is_wanted() && self.seen != Some(number);
        due.then_some(self.next)
    }

    /// Begins an update, if there is anything to say.
    pub fn begin(&mut self, scene: Scene<'_>, now: Instant, out: &mut Vec<u8>) {
        if let Some(format) = self.next_format.take()
            && format != self.format
        {
            self.format = format;
            self.view.forget_all();
        }
        self.say_size(scene.pixels, out);
        if std::mem::take(&mut self.pointer_due) {
            put_update(1, out);
            put_rectangle(pointer::HOT_SPOT, CURSOR, out);
            pointer::put(&self.format, out);
        }
        self.seen = Some(scene.number);
        // Whatever comes of it: that nothing changed takes a look at every character.
        self.next = now + PERIOD;
        self.spent = Some(Duration::ZERO);
        let Some(plan) = self.view.plan(scene.picture, self.copying) else { return };
        put_update(plan.rectangles + u16::from(plan.copy.is_some()), out);
        if let Some(copy) = plan.copy {
            put_rectangle(copy.to, COPY_RECT, out);
            out.extend_from_slice(&copy.to.x.to_be_bytes());
            out.extend_from_slice(&copy.from_y.to_be_bytes());
        }
    }

    /// Encodes rectangles until `out` is so long, or all are.
    ///
    /// # Errors
    /// The client's stream broke.
    pub fn go_on(
        &mut self,
        scene: Scene<'_>,
        enough: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CompressError> {
        if self.view.is_done() {
            return Ok(());
        }
        let mut pixels = Vec::new();
        while out.len() < enough
            && let Some(region) = self.view.next_rectangle(scene.picture, &mut pixels)
        {
            put_rectangle(region, self.encoding.number(), out);
            let width = region.width.into();
            self.encoder.encode(self.encoding, &self.format, &pixels, width, out)?;
        }
        if self.view.is_done() {
            self.encoder.rest();
        }
        Ok(())
    }

    /// It took so much time; the next picture is due when it took no more than its share.
    pub fn charge(&mut self, time: Duration, clients: u32) {
        let Some(spent) = &mut self.spent else { return };
        *spent += time;
        if self.view.is_done() {
            let rest = spent.saturating_mul(REST.saturating_mul(clients));
            self.spent = None;
            self.next = self.next.max(Instant::now() + rest.min(LONGEST_REST));
        }
    }

    fn say_size(&mut self, pixels: Pixels, out: &mut Vec<u8>) {
        let changed = self.view.pixels() != pixels;
        let reason = match (self.sizes, self.size_due.take()) {
            (Sizes::Fixed, _) => return,
            (Sizes::Plain, _) if !changed => return,
            (Sizes::Extended, None) if !changed => return,
            (Sizes::Plain | Sizes::Extended, reason) => reason.unwrap_or(Reason::Server),
        };
        if changed {
            self.view = View::new(pixels);
            self.view.want(pixels.all(), true);
        }
        put_update(1, out);
        let Pixels { width, height } = pixels;
        if self.sizes == Sizes::Plain {
            put_rectangle(pixels.all(), DESKTOP_SIZE, out);
            return;
        }
        let (x, y) = match reason {
            Reason::Server => (0, 0),
            Reason::Client => (1, 0),
            Reason::Invalid => (1, 3),
        };
        put_rectangle(Region { x, y, width, height }, EXTENDED_DESKTOP_SIZE, out);
        // One screen that covers all, without flags. Its number must not be 0, which LibVNCClient takes for invalid.
        out.extend_from_slice(&[1, 0, 0, 0]);
        out.extend_from_slice(&1_u32.to_be_bytes());
        for number in [0, 0, width, height] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&[0; 4]);
    }
}

fn put_update(rectangles: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&[FRAMEBUFFER_UPDATE, 0]);
    out.extend_from_slice(&rectangles.to_be_bytes());
}

fn put_rectangle(region: Region, encoding: i32, out: &mut Vec<u8>) {
    for number in [region.x, region.y, region.width, region.height] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&encoding.to_be_bytes());
}
