//! How a client wants a pixel: RFC 6143, section 7.4.

use crate::colour::Rgb;

/// Bytes of a pixel format on the wire.
pub const LENGTH: usize = 16;

/// A pixel format with true colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelFormat {
    bytes: Bytes,
    depth: u8,
    big_endian: bool,
    red: Channel,
    green: Channel,
    blue: Channel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    One,
    Two,
    Four,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Channel {
    max: u16,
    shift: u8,
}

/// A pixel format that cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFormat {
    /// Colour maps are a thing of displays that had no true colours.
    #[error("colour maps are not supported")]
    ColourMap,
    /// The numbers contradict each other.
    #[error("pixel format of {bits} bits is impossible")]
    Impossible {
        /// Bits per pixel.
        bits: u8,
    },
}

/// Which bytes of a pixel are sent where encodings shorten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Short {
    /// All.
    Whole,
    /// The first three.
    First,
    /// The last three.
    Last,
}

impl PixelFormat {
    /// What a server offers: 32 bits with eight for each colour, little-endian, red highest. Most clients take it as
    /// it is.
    pub const NATIVE: Self = Self {
        bytes: Bytes::Four,
        depth: 24,
        big_endian: false,
        red: Channel { max: 255, shift: 16 },
        green: Channel { max: 255, shift: 8 },
        blue: Channel { max: 255, shift: 0 },
    };

    /// Reads one.
    ///
    /// # Errors
    /// It has a colour map, or no pixel can be like that.
    pub fn parse(wire: &[u8; LENGTH]) -> Result<Self, BadFormat> {
        let &[bits, depth, big, true_colour, r0, r1, g0, g1, b0, b1, r, g, b, _, _, _] = wire;
        let bytes = match bits {
            8 => Bytes::One,
            16 => Bytes::Two,
            32 => Bytes::Four,
            _ => return Err(BadFormat::Impossible { bits }),
        };
        if true_colour == 0 {
            return Err(BadFormat::ColourMap);
        }
        let channel = |max: [u8; 2], shift| Channel { max: u16::from_be_bytes(max), shift };
        let (red, green, blue) = (channel([r0, r1], r), channel([g0, g1], g), channel([b0, b1], b));
        let fits = |channel: Channel| {
            let (max, room) = (u64::from(channel.max), 1_u64 << bits);
            max > 0 && channel.shift < bits && max << channel.shift < room
        };
        if depth == 0 || depth > bits || ![red, green, blue].into_iter().all(fits) {
            return Err(BadFormat::Impossible { bits });
        }
        Ok(Self { bytes, depth, big_endian: big != 0, red, green, blue })
    }

    /// As sent to clients.
    #[must_use]
    pub fn wire(&self) -> [u8; LENGTH] {
        let bits = match self.bytes {
            Bytes::One => 8,
            Bytes::Two => 16,
            Bytes::Four => 32,
        };
        let max = |channel: Channel| channel.max.to_be_bytes();
        let ([r0, r1], [g0, g1], [b0, b1]) = (max(self.red), max(self.green), max(self.blue));
        let (r, g, b) = (self.red.shift, self.green.shift, self.blue.shift);
        [bits, self.depth, self.big_endian.into(), 1, r0, r1, g0, g1, b0, b1, r, g, b, 0, 0, 0]
    }

    /// Appends a pixel as it is.
    pub fn put(&self, rgb: Rgb, out: &mut Vec<u8>) {
        self.put_part(rgb, Short::Whole, out);
    }

    /// Appends a pixel as ZRLE has it (CPIXEL, section 7.7.5): three of four bytes where that is enough.
    pub fn put_compact(&self, rgb: Rgb, out: &mut Vec<u8>) {
        self.put_part(rgb, self.compact(), out);
    }

    /// Appends a pixel as Tight has it (TPIXEL): red, green, blue where each has eight of 32 bits.
    pub fn put_tight(&self, rgb: Rgb, out: &mut Vec<u8>) {
        let eight = |channel: Channel| channel.max == 255;
        let all = eight(self.red) && eight(self.green) && eight(self.blue);
        if self.bytes == Bytes::Four && self.depth == 24 && all {
            let [_, red, green, blue] = rgb.to_be_bytes();
            out.extend_from_slice(&[red, green, blue]);
        } else {
            self.put(rgb, out);
        }
    }

    fn put_part(&self, rgb: Rgb, part: Short, out: &mut Vec<u8>) {
        let [_, red, green, blue] = rgb.to_be_bytes();
        let value = self.red.scale(red) | self.green.scale(green) | self.blue.scale(blue);
        let [a, b, c, d] = value.to_be_bytes();
        let four = if self.big_endian { [a, b, c, d] } else { [d, c, b, a] };
        match (self.bytes, part) {
            (Bytes::One, _) => out.push(d),
            (Bytes::Two, _) if self.big_endian => out.extend_from_slice(&[c, d]),
            (Bytes::Two, _) => out.extend_from_slice(&[d, c]),
            (Bytes::Four, Short::Whole) => out.extend_from_slice(&four),
            (Bytes::Four, Short::First) => out.extend_from_slice(&four[..3]),
            (Bytes::Four, Short::Last) => out.extend_from_slice(&four[1..]),
        }
    }

    fn compact(&self) -> Short {
        let all = [self.red, self.green, self.blue];
        let used = all.iter().fold(0, |used, channel| used | channel.scale(255));
        let short = self.bytes == Bytes::Four && self.depth <= 24;
        // Which end of memory the unused byte is at depends on the order.
        match (used & 0xff00_0000 == 0, used & 0xff == 0, self.big_endian) {
            (true, _, false) | (false, true, true) if short => Short::First,
            (true, _, true) | (false, true, false) if short => Short::Last,
            _ => Short::Whole,
        }
    }
}

impl Channel {
    /// The share of the pixel's value.
    fn scale(self, eight_bits: u8) -> u32 {
        let max = u32::from(self.max);
        ((u32::from(eight_bits) * max + 127) / 255) << self.shift
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bits, depth, big-endian, then maximum and shift of each colour.
    fn format(bits: u8, depth: u8, big: u8, maxes: [u16; 3], shifts: [u8; 3]) -> [u8; LENGTH] {
        let mut wire = [0; LENGTH];
        wire[..4].copy_from_slice(&[bits, depth, big, 1]);
        for (at, max) in maxes.iter().enumerate() {
            wire[4 + 2 * at..][..2].copy_from_slice(&max.to_be_bytes());
        }
        wire[10..13].copy_from_slice(&shifts);
        wire
    }

    type Put = fn(&PixelFormat, Rgb, &mut Vec<u8>);

    fn put(how: Put, wire: [u8; LENGTH], rgb: Rgb) -> Vec<u8> {
        let mut out = Vec::new();
        how(&PixelFormat::parse(&wire).unwrap(), rgb, &mut out);
        out
    }

    const RGB: Rgb = 0x11_80ff;

    #[test]
    fn pixels_are_put_as_asked() {
        for (wire, whole, compact, tight) in [
            (
                PixelFormat::NATIVE.wire(),
                &[0xff_u8, 0x80, 0x11, 0][..],
                &[0xff_u8, 0x80, 0x11][..],
                &[0x11_u8, 0x80, 0xff][..],
            ),
            (
                format(32, 24, 1, [255; 3], [16, 8, 0]),
                &[0, 0x11, 0x80, 0xff],
                &[0x11, 0x80, 0xff],
                &[0x11, 0x80, 0xff],
            ),
            // The unused byte is the lowest.
            (
                format(32, 24, 0, [255; 3], [8, 16, 24]),
                &[0, 0x11, 0x80, 0xff],
                &[0x11, 0x80, 0xff],
                &[0x11, 0x80, 0xff],
            ),
            (
                format(32, 24, 1, [255; 3], [8, 16, 24]),
                &[0xff, 0x80, 0x11, 0],
                &[0xff, 0x80, 0x11],
                &[0x11, 0x80, 0xff],
            ),
            // All four are used.
            (
                format(32, 30, 0, [1023; 3], [20, 10, 0]),
                &[0xff, 0x0b, 0x48, 0x04],
                &[0xff, 0x0b, 0x48, 0x04],
                &[0xff, 0x0b, 0x48, 0x04],
            ),
            (
                format(16, 16, 0, [31, 63, 31], [11, 5, 0]),
                &[0x1f, 0x14],
                &[0x1f, 0x14],
                &[0x1f, 0x14],
            ),
            (
                format(16, 16, 1, [31, 63, 31], [11, 5, 0]),
                &[0x14, 0x1f],
                &[0x14, 0x1f],
                &[0x14, 0x1f],
            ),
            (format(8, 8, 0, [7, 7, 3], [0, 3, 6]), &[0xe0], &[0xe0], &[0xe0]),
        ] {
            assert_eq!(put(PixelFormat::put, wire, RGB), whole, "{wire:?}");
            assert_eq!(put(PixelFormat::put_compact, wire, RGB), compact, "{wire:?}");
            assert_eq!(put(PixelFormat::put_tight, wire, RGB), tight, "{wire:?}");
        }
    }

    #[test]
    fn impossible_formats_are_refused() {
        let mut mapped = format(8, 8, 0, [0; 3], [0; 3]);
        mapped[3] = 0;
        assert_eq!(PixelFormat::parse(&mapped), Err(BadFormat::ColourMap));
        for wire in [
            format(24, 24, 0, [255; 3], [16, 8, 0]),
            format(0, 0, 0, [255; 3], [16, 8, 0]),
            format(8, 8, 0, [255; 3], [16, 8, 0]),
            format(8, 8, 0, [7, 7, 7], [0, 3, 6]),
            format(32, 33, 0, [255; 3], [16, 8, 0]),
            format(32, 24, 0, [255, 0, 255], [16, 8, 0]),
            format(32, 24, 0, [255; 3], [16, 8, 32]),
            format(32, 24, 0, [255; 3], [16, 8, 255]),
            format(32, 32, 0, [u16::MAX; 3], [16, 17, 0]),
        ] {
            let bits = wire[0];
            assert_eq!(PixelFormat::parse(&wire), Err(BadFormat::Impossible { bits }), "{wire:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

        #[test]
        fn whatever_is_accepted_can_be_put(wire: [u8; LENGTH], rgb in 0_u32..1 << 24) {
            if let Ok(format) = PixelFormat::parse(&wire) {
                let mut out = Vec::new();
                format.put(rgb, &mut out);
                prop_assert_eq!(out.len(), usize::from(wire[0]) / 8);
                format.put_compact(rgb, &mut out);
                format.put_tight(rgb, &mut out);
            }
        }
    }
}
