//! Encoded rectangles are decoded again, by decoders written from the same descriptions for these tests alone. What
//! real clients make of them is tested in `tests/`.

use flate2::{Decompress, FlushDecompress};
use proptest::prelude::*;

use super::*;

fn inflate(stream: &mut Decompress, input: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 << 20);
    let begin = stream.total_in();
    stream.decompress_vec(input, &mut out, FlushDecompress::Sync).unwrap();
    assert_eq!((stream.total_in() - begin) as usize, input.len(), "all of it is used");
    out
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(n);
        self.0 = rest;
        now
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    /// Of the native format: blue, green, red.
    fn compact(&mut self) -> Rgb {
        let bytes = self.take(3);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
    }

    fn tight(&mut self) -> Rgb {
        let bytes = self.take(3);
        u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]])
    }

    fn packed(&mut self, width: usize, bits: usize) -> Vec<usize> {
        let row = self.take((width * bits).div_ceil(8));
        let bit = |at: usize| usize::from(row[at / 8] >> (7 - at % 8) & 1);
        (0..width).map(|x| (0..bits).fold(0, |n, b| n << 1 | bit(x * bits + b))).collect()
    }
}

fn read_zrle(stream: &mut Decompress, bytes: &[u8], width: usize, height: usize) -> Vec<Rgb> {
    let (length, rest) = bytes.split_first_chunk().unwrap();
    assert_eq!(u32::from_be_bytes(*length) as usize, rest.len());
    let tiles = inflate(stream, rest);
    let mut tiles = Bytes(&tiles);
    let mut pixels = vec![0xdead_beef; width * height];
    for top in (0..height).step_by(64) {
        for left in (0..width).step_by(64) {
            let (w, h) = (64.min(width - left), 64.min(height - top));
            let kind = tiles.byte();
            let palette: Vec<Rgb> = (0..kind).map(|_| tiles.compact()).collect();
            for y in top..top + h {
                let row = &mut pixels[y * width + left..][..w];
                match kind {
                    0 => row.fill_with(|| tiles.compact()),
                    1 => row.fill(palette[0]),
                    2..=16 => {
                        let bits = [1, 1, 1, 2, 2].get(usize::from(kind)).copied().unwrap_or(4);
                        let numbers = tiles.packed(w, bits).into_iter();
                        row.iter_mut().zip(numbers).for_each(|(rgb, n)| *rgb = palette[n]);
                    }
                    _ => panic!("tile of kind {kind}"),
                }
            }
        }
    }
    assert!(tiles.0.is_empty());
    pixels
}

fn read_tight(stream: &mut Decompress, bytes: &[u8], width: usize, height: usize) -> Vec<Rgb> {
    let mut bytes = Bytes(bytes);
    let control = bytes.byte();
    if control == 0x80 {
        let pixels = vec![bytes.tight(); width * height];
        assert!(bytes.0.is_empty());
        return pixels;
    }
    let mut palette = Vec::new();
    if control == 0x40 {
        assert_eq!(bytes.byte(), 1, "the palette's filter");
        let colours = usize::from(bytes.byte()) + 1;
        palette = (0..colours).map(|_| bytes.tight()).collect();
    } else {
        assert_eq!(control, 0);
    }
    let (bits, row) = match palette.len() {
        0 => (24, 3 * width),
        2 => (1, width.div_ceil(8)),
        _ => (8, width),
    };
    let data = if row * height < 12 {
        bytes.take(row * height).to_vec()
    } else {
        let mut length = 0;
        for n in 0..3 {
            let byte = bytes.byte();
            length |= usize::from(if n < 2 { byte & 0x7f } else { byte }) << (7 * n);
            if byte & 0x80 == 0 && n < 2 {
                break;
            }
        }
        inflate(stream, bytes.take(length))
    };
    assert!(bytes.0.is_empty());
    let mut data = Bytes(&data);
    let mut pixels = Vec::new();
    for _ in 0..height {
        match bits {
            24 => pixels.extend((0..width).map(|_| data.tight())),
            _ => pixels.extend(data.packed(width, bits).into_iter().map(|n| palette[n])),
        }
    }
    assert!(data.0.is_empty());
    pixels
}

/// So many colours, none beside itself.
fn colourful(width: usize, height: usize, colours: u32) -> Vec<Rgb> {
    (0..(width * height) as u32)
        .map(|n| (n % colours).wrapping_mul(0x0001_0305) & 0x00ff_ffff)
        .collect()
}

/// A stream goes on from rectangle to rectangle; each has to be read as it was.
fn round_trips(rectangles: &[(usize, usize, Vec<Rgb>)]) {
    let mut encoder = Encoder::default();
    let (mut zrle, mut tight) = (Decompress::new(true), Decompress::new(true));
    for (width, height, pixels) in rectangles {
        let mut encode = |encoding| {
            let mut out = vec![1, 2, 3];
            encoder.encode(encoding, &PixelFormat::NATIVE, pixels, *width, &mut out).unwrap();
            assert_eq!(out[..3], [1, 2, 3]);
            out.split_off(3)
        };
        let (one, other) = (encode(Encoding::Zrle), encode(Encoding::Tight));
        assert!(read_zrle(&mut zrle, &one, *width, *height) == *pixels, "ZRLE {width}x{height}");
        assert!(
            read_tight(&mut tight, &other, *width, *height) == *pixels,
            "Tight {width}x{height}"
        );
    }
}

#[test]
fn rectangles_of_all_kinds_are_read_as_they_were() {
    let sizes = [(1, 1), (8, 16), (63, 64), (64, 64), (65, 17), (640, 64), (2048, 64)];
    let colours = [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 70_000];
    let all = sizes.into_iter().flat_map(|(w, h)| {
        colours.into_iter().map(move |colours| (w, h, colourful(w, h, colours)))
    });
    round_trips(&all.collect::<Vec<_>>());
}

#[test]
fn text_is_small() {
    let (width, height) = (640, 64);
    let pixels: Vec<Rgb> = colourful(width, height, 2);
    let size = |encoding| {
        let mut out = Vec::new();
        Encoder::default()
            .encode(encoding, &PixelFormat::NATIVE, &pixels, width, &mut out)
            .unwrap();
        out.len()
    };
    assert_eq!(size(Encoding::Raw), width * height * 4);
    assert!(size(Encoding::Zrle) < 400, "{}", size(Encoding::Zrle));
    assert!(size(Encoding::Tight) < 400, "{}", size(Encoding::Tight));
}

#[test]
fn the_clients_first_choice_is_taken() {
    for (wanted, chosen) in [
        (&[][..], Encoding::Raw),
        (&[1, 5, -239], Encoding::Raw),
        (&[1, 7, 16, 0], Encoding::Tight),
        (&[16, 7, 0], Encoding::Zrle),
        (&[0, 16], Encoding::Raw),
    ] {
        assert_eq!(Encoding::choose(wanted), chosen, "{wanted:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_rectangles_are_read_as_they_were(
        rectangles in prop::collection::vec((1_usize..150, 1_usize..=64, 1_u32..300), 1..6)
    ) {
        let all = rectangles.into_iter().map(|(w, h, colours)| (w, h, colourful(w, h, colours)));
        round_trips(&all.collect::<Vec<_>>());
    }
}
