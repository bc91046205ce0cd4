//! The bitmap font: characters to rows of pixels.
//!
//! The table is part of the program, see `font/README.md` for its origin, licence and form. It stays in the page
//! cache, shared by all processes that show a console; only the pages of characters in use are ever read.

/// Columns of pixels of a character.
pub const WIDTH: usize = 8;
/// Rows of pixels of a character.
pub const HEIGHT: usize = 16;

static TABLE: &[u8] = include_bytes!("../font/console.font");

const HEAD: usize = 10;
const COUNT: usize = u16::from_le_bytes([TABLE[8], TABLE[9]]) as usize;
const REGULAR: usize = HEAD + 2 * COUNT;
const BOLD: usize = REGULAR + HEIGHT * COUNT;

// A damaged table does not compile.
const _: () = assert!(TABLE.len() == BOLD + HEIGHT * COUNT && COUNT > 95);
const _: () = assert!(matches!(TABLE.split_at(8).0, b"OCVFONT1"));

/// Number of a glyph in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Glyph(u16);

impl Glyph {
    /// Nothing to see. The table begins with the space.
    pub const BLANK: Self = Self(0);

    /// The glyph of a character, or the one that says that there is none.
    #[must_use]
    pub fn of(character: char) -> Self {
        let found = match character {
            // The printable ones of ASCII come first in any font.
            ' '..='~' => return Self(character as u16 - 0x20),
            '\u{a0}'.. => find(character),
            '\0'..'\u{a0}' => None,
        };
        found.or_else(|| find('\u{fffd}')).unwrap_or(Self::BLANK)
    }

    /// The rows of pixels from the top; the highest bit is the leftmost pixel.
    #[must_use]
    pub fn rows(self, weight: Weight) -> [u8; HEIGHT] {
        let face = match weight {
            Weight::Regular => REGULAR,
            Weight::Bold => BOLD,
        };
        let at = face + HEIGHT * usize::from(self.0);
        let rows = TABLE.get(at..).and_then(<[u8]>::first_chunk);
        rows.copied().unwrap_or_default()
    }
}

/// How strong a glyph is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// As text is.
    Regular,
    /// As SGR 1 wants it.
    Bold,
}

fn find(character: char) -> Option<Glyph> {
    let wanted = u16::try_from(u32::from(character)).ok()?;
    let (mut low, mut high) = (0, COUNT);
    while low < high {
        let middle = usize::midpoint(low, high);
        let at = HEAD + 2 * middle;
        match u16::from_le_bytes([TABLE[at], TABLE[at + 1]]).cmp(&wanted) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            // Less than COUNT, which came from a u16.
            std::cmp::Ordering::Equal => return Some(Glyph(middle as u16)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(character: char, weight: Weight) -> Vec<String> {
        let rows = Glyph::of(character).rows(weight);
        let line = |row: u8| format!("{row:08b}").replace('0', ".").replace('1', "#");
        rows.iter().map(|row| line(*row)).collect()
    }

    #[test]
    fn characters_look_as_they_should() {
        // Their beauty is the font's business; that each is the right one, and the right way round, is ours.
        assert_eq!(
            picture('L', Weight::Regular)[2..12],
            [
                ".#......", ".#......", ".#......", ".#......", ".#......", ".#......", ".#......",
                ".#......", ".#......", ".######.",
            ]
        );
        assert_eq!(picture('\u{2588}', Weight::Regular), ["########"; HEIGHT]);
        assert_eq!(picture(' ', Weight::Bold), ["........"; HEIGHT]);
        assert_eq!(
            picture('\u{2500}', Weight::Regular).iter().filter(|r| *r == "########").count(),
            1
        );
    }

    #[test]
    fn printable_ascii_is_where_it_is_looked_up() {
        for character in ' '..='~' {
            assert_eq!(find(character), Some(Glyph::of(character)), "{character:?}");
        }
    }

    #[test]
    fn bold_is_stronger() {
        let ink =
            |weight| Glyph::of('m').rows(weight).iter().map(|row| row.count_ones()).sum::<u32>();
        assert!(ink(Weight::Bold) > ink(Weight::Regular));
    }

    #[test]
    fn many_scripts_have_glyphs_and_the_rest_a_replacement() {
        let missing = Glyph::of('\u{fffd}');
        for character in "äőßñŁžΩλЖяїґ─│┌┐└┘├┤┬┴┼═║█░▒▓←↑→↓≤≥≠€•…“”′⠿√∞".chars()
        {
            assert_ne!(Glyph::of(character), missing, "{character:?}");
        }
        for character in ['漢', '\u{1f600}', '\u{85}', '\0', '\u{7f}'] {
            assert_eq!(Glyph::of(character), missing, "{character:?}");
        }
    }
}
