//! Pixels to bytes: the encodings that real clients use for a text screen.
//!
//! Raw is what every client must know. Guacamole (in the web interface of OpenNebula) and RealVNC take
//! ZRLE, noVNC and TigerVNC take Tight. Both are small palettes and zlib, which text consists of; Tight's JPEG, and
//! ZRLE's run lengths, which zlib makes superfluous, are absent. Each client has at most one zlib stream of each kind,
//! made when it is first used, for as long as it stays (RFC 6143, section 7.7.6: streams are never reset).

use std::fmt;

use flate2::{Compress, CompressError, Compression, FlushCompress, Status};

use super::pixel::PixelFormat;
use crate::colour::Rgb;

/// Widest rectangle, pixels: Tight allows no more.
pub const MAX_WIDTH: usize = 2048;
/// Highest rectangle, pixels: a row of ZRLE's tiles.
pub const MAX_HEIGHT: usize = TILE;

const TILE: usize = 64;
/// Colours of a packed tile.
const ZRLE_COLOURS: usize = 16;
/// Colours of a palette that an index of a byte reaches.
const TIGHT_COLOURS: usize = 256;
/// What is shorter is not compressed by Tight.
const TIGHT_PLAIN: usize = 12;

/// How rectangles are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Pixel by pixel.
    Raw,
    /// Tiles of 64 by 64 pixels with palettes, compressed.
    Zrle,
    /// Whole rectangles with palettes, compressed.
    Tight,
}

impl Encoding {
    /// Its number on the wire.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Self::Raw => 0,
            Self::Tight => 7,
            Self::Zrle => 16,
        }
    }

    /// The one that the client likes best.
    #[must_use]
    pub fn choose(wanted: &[i32]) -> Self {
        let all = [Self::Tight, Self::Zrle, Self::Raw];
        let known = |number: &i32| all.into_iter().find(|known| known.number() == *number);
        wanted.iter().find_map(known).unwrap_or(Self::Raw)
    }
}

/// A client's streams.
#[derive(Default)]
pub struct Encoder {
    zrle: Option<Compress>,
    tight: Option<Compress>,
    /// What is to be compressed; kept because it is needed again at once.
    scratch: Vec<u8>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// Appends the pixels of a rectangle, rows of `width`, at most [`MAX_WIDTH`] by [`MAX_HEIGHT`].
    ///
    /// # Errors
    /// zlib failed, and the client cannot follow its stream any more.
    pub fn encode(
        &mut self,
        encoding: Encoding,
        format: &PixelFormat,
        pixels: &[Rgb],
        width: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CompressError> {
        match encoding {
            Encoding::Raw => {
                for rgb in pixels {
                    format.put(*rgb, out);
                }
                Ok(())
            }
            Encoding::Zrle => self.zrle(format, pixels, width, out),
            Encoding::Tight => self.tight(format, pixels, width, out),
        }
    }

    /// Lets go of memory that is only needed while something is sent.
    pub fn rest(&mut self) {
        self.scratch = Vec::new();
    }

    /// RFC 6143, section 7.7.6.
    fn zrle(
        &mut self,
        format: &PixelFormat,
        pixels: &[Rgb],
        width: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CompressError> {
        self.scratch.clear();
        let rows: Vec<&[Rgb]> = pixels.chunks(width.max(1)).collect();
        for band in rows.chunks(TILE) {
            for left in (0..width).step_by(TILE) {
                let right = width.min(left + TILE);
                zrle_tile(format, band, left..right, &mut self.scratch);
            }
        }
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        deflate(self.zrle.get_or_insert_with(stream), &self.scratch, out)?;
        // A rectangle has less than a megabyte.
        let length = (out.len() - at - 4) as u32;
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// The Tight encoding of the community's description (rfbproto.rst, "Tight Encoding").
    fn tight(
        &mut self,
        format: &PixelFormat,
        pixels: &[Rgb],
        width: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CompressError> {
        const FILL: u8 = 0x80;
        const EXPLICIT_FILTER: u8 = 0x40;
        const PALETTE: u8 = 1;
        let palette = Palette::of(pixels.iter(), TIGHT_COLOURS);
        let colours = palette.as_ref().map(|palette| palette.colours.as_slice());
        self.scratch.clear();
        match (colours, &palette) {
            (Some(&[colour]), _) => {
                out.push(FILL);
                format.put_tight(colour, out);
                return Ok(());
            }
            (Some(colours), Some(palette)) if !colours.is_empty() => {
                // At most 256.
                let last = (colours.len() - 1) as u8;
                out.extend_from_slice(&[EXPLICIT_FILTER, PALETTE, last]);
                for colour in colours {
                    format.put_tight(*colour, out);
                }
                let bits = if last == 1 { 1 } else { 8 };
                for row in pixels.chunks(width.max(1)) {
                    palette.pack(row, bits, &mut self.scratch);
                }
            }
            _ => {
                out.push(0);
                for rgb in pixels {
                    format.put_tight(*rgb, &mut self.scratch);
                }
            }
        }
        if self.scratch.len() < TIGHT_PLAIN {
            out.extend_from_slice(&self.scratch);
            return Ok(());
        }
        // The length stands before, in as many bytes as it takes; room for three is made and closed again.
        let at = out.len();
        out.extend_from_slice(&[0; 3]);
        deflate(self.tight.get_or_insert_with(stream), &self.scratch, out)?;
        let length = out.len() - at - 3;
        let seven = |shift: usize| (length >> shift & 0x7f) as u8;
        let bytes: &[u8] = match length {
            0..0x80 => &[seven(0)],
            0x80..0x4000 => &[seven(0) | 0x80, seven(7)],
            _ => &[seven(0) | 0x80, seven(7) | 0x80, (length >> 14 & 0xff) as u8],
        };
        out.splice(at..at + 3, bytes.iter().copied());
        Ok(())
    }
}

fn zrle_tile(
    format: &PixelFormat,
    rows: &[&[Rgb]],
    columns: std::ops::Range<usize>,
    out: &mut Vec<u8>,
) {
    const RAW: u8 = 0;
    let tile = rows.iter().map(|row| &row[columns.clone()]);
    let Some(palette) = Palette::of(tile.clone().flatten(), ZRLE_COLOURS) else {
        out.push(RAW);
        for rgb in tile.flatten() {
            format.put_compact(*rgb, out);
        }
        return;
    };
    // One colour is a kind of its own, with the same number.
    out.push(palette.colours.len() as u8);
    for colour in &palette.colours {
        format.put_compact(*colour, out);
    }
    let bits = match palette.colours.len() {
        0 | 1 => return,
        2 => 1,
        3 | 4 => 2,
        _ => 4,
    };
    for row in tile {
        palette.pack(row, bits, out);
    }
}

/// The few colours of a rectangle, in the order in which they appear.
struct Palette {
    colours: Vec<Rgb>,
}

impl Palette {
    /// `None` if there are more than `most`.
    fn of<'a>(pixels: impl Iterator<Item = &'a Rgb>, most: usize) -> Option<Self> {
        let mut colours = Vec::new();
        let mut last = None;
        for rgb in pixels {
            if last != Some(rgb) && !colours.contains(rgb) {
                if colours.len() == most {
                    return None;
                }
                colours.push(*rgb);
            }
            last = Some(rgb);
        }
        Some(Self { colours })
    }

    /// Appends the numbers of a row's colours, so many bits for each, the first in the highest.
    fn pack(&self, row: &[Rgb], bits: usize, out: &mut Vec<u8>) {
        let mut last = (None, 0);
        let mut number = |rgb: &Rgb| {
            if last.0 != Some(*rgb) {
                let at = self.colours.iter().position(|colour| colour == rgb).unwrap_or(0);
                // At most 256 colours.
                last = (Some(*rgb), at as u8);
            }
            last.1
        };
        let each = 8 / bits;
        for pixels in row.chunks(each) {
            let packed =
                pixels.iter().fold(0_u16, |byte, rgb| byte << bits | u16::from(number(rgb)));
            out.push((packed << (bits * (each - pixels.len()))) as u8);
        }
    }
}

/// Text compresses about as well at this level as at the highest, in a fraction of the time.
fn stream() -> Compress {
    Compress::new(Compression::new(3), true)
}

fn deflate(stream: &mut Compress, input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressError> {
    let begin = stream.total_in();
    loop {
        let taken = usize::try_from(stream.total_in() - begin).unwrap_or(usize::MAX);
        let left = input.get(taken..).unwrap_or_default();
        out.reserve(left.len() / 8 + 64);
        match stream.compress_vec(left, out, FlushCompress::Sync)? {
            // All is out only if there was room for more (zlib.h, deflate).
            Status::Ok | Status::BufError if out.len() < out.capacity() => return Ok(()),
            Status::Ok | Status::BufError | Status::StreamEnd => {}
        }
    }
}

#[cfg(test)]
mod tests;
