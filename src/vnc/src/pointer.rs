//! The shape of the mouse pointer. A client that draws the pointer by itself shows none until it is told how it looks.

use crate::rfb::message::Region;
use crate::rfb::pixel::PixelFormat;

/// A bar as over text: `#` is white, `o` black, a point lets the screen through.
#[rustfmt::skip]
const SHAPE: [&str; 15] = [
    "ooo.ooo",
    "o##o##o",
    "ooo#ooo",
    "..o#o..",
    "..o#o..",
    "..o#o..",
    "..o#o..",
    "..o#o..",
    "..o#o..",
    "..o#o..",
    "..o#o..",
    "..o#o..",
    "ooo#ooo",
    "o##o##o",
    "ooo.ooo",
];

/// Its size, and where in it the place is that it points to.
pub const HOT_SPOT: Region = Region { x: 3, y: 7, width: 7, height: 15 };

/// Appends its pixels, then a bit for each that is to be seen (RFC 6143, section 7.8.1).
pub fn put(format: &PixelFormat, out: &mut Vec<u8>) {
    for point in SHAPE.iter().flat_map(|row| row.bytes()) {
        format.put(if point == b'#' { 0x00ff_ffff } else { 0 }, out);
    }
    for row in SHAPE {
        let bits = row.bytes().fold(0, |bits, point| bits << 1 | u8::from(point != b'.'));
        out.push(bits << 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_mask_have_the_size_that_is_told() {
        let mut out = Vec::new();
        put(&PixelFormat::NATIVE, &mut out);
        assert_eq!(out.len(), 7 * 15 * 4 + 15);
        assert_eq!(out[..4], [0; 4]);
        assert_eq!(out[8 * 4..9 * 4], [0xff, 0xff, 0xff, 0]);
        let mask = &out[7 * 15 * 4..];
        assert_eq!(mask[..4], [0b1110_1110, 0b1111_1110, 0b1111_1110, 0b0011_1000]);
    }
}
