//! What a colour of the terminal looks like.

use alacritty_terminal::vte::ansi::{Color, NamedColor};

/// Red, green and blue, eight bits each, in the low three bytes.
pub type Rgb = u32;

/// Text without a colour.
pub const FOREGROUND: Rgb = 0x00aa_aaaa;
/// What is behind it.
pub const BACKGROUND: Rgb = 0;

/// The sixteen of VGA's text mode, which Linux' console shows.
const NAMED: [Rgb; 16] = [
    0x0000_0000,
    0x00aa_0000,
    0x0000_aa00,
    0x00aa_5500,
    0x0000_00aa,
    0x00aa_00aa,
    0x0000_aaaa,
    0x00aa_aaaa,
    0x0055_5555,
    0x00ff_5555,
    0x0055_ff55,
    0x00ff_ff55,
    0x0055_55ff,
    0x00ff_55ff,
    0x0055_ffff,
    0x00ff_ffff,
];

/// Steps of xterm's colour cube.
const CUBE: [u8; 6] = [0, 95, 135, 175, 215, 255];

/// How much light a text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Light {
    /// SGR 2: two thirds.
    Dim,
    /// As it is.
    Normal,
    /// SGR 1: the first eight colours become the next eight, as on Linux' console and in xterm. Dark blue on black
    /// cannot be read otherwise.
    Bright,
}

/// The colour to paint.
#[must_use]
pub fn rgb(colour: Color, light: Light) -> Rgb {
    match colour {
        Color::Spec(rgb) => dimmed(pack(rgb.r, rgb.g, rgb.b), light),
        Color::Indexed(index) => indexed(index, light),
        Color::Named(name) => named(name, light),
    }
}

fn named(name: NamedColor, light: Light) -> Rgb {
    match name {
        NamedColor::Foreground | NamedColor::Cursor => match light {
            Light::Dim => dimmed(FOREGROUND, light),
            Light::Normal => FOREGROUND,
            Light::Bright => NAMED[15],
        },
        NamedColor::Background => BACKGROUND,
        NamedColor::BrightForeground => NAMED[15],
        NamedColor::DimForeground => dimmed(FOREGROUND, Light::Dim),
        NamedColor::DimBlack => indexed(0, Light::Dim),
        NamedColor::DimRed => indexed(1, Light::Dim),
        NamedColor::DimGreen => indexed(2, Light::Dim),
        NamedColor::DimYellow => indexed(3, Light::Dim),
        NamedColor::DimBlue => indexed(4, Light::Dim),
        NamedColor::DimMagenta => indexed(5, Light::Dim),
        NamedColor::DimCyan => indexed(6, Light::Dim),
        NamedColor::DimWhite => indexed(7, Light::Dim),
        // The sixteen have the numbers of the palette.
        sixteen => indexed(sixteen as u8, light),
    }
}

fn indexed(index: u8, light: Light) -> Rgb {
    match index {
        0..8 if light == Light::Bright => NAMED[usize::from(index) + 8],
        0..16 => dimmed(NAMED[usize::from(index)], light),
        16..232 => {
            let (index, step) = (index - 16, |n: u8| CUBE[usize::from(n % 6)]);
            dimmed(pack(step(index / 36), step(index / 6), step(index)), light)
        }
        232.. => {
            let grey = 8 + 10 * (index - 232);
            dimmed(pack(grey, grey, grey), light)
        }
    }
}

fn pack(red: u8, green: u8, blue: u8) -> Rgb {
    u32::from_be_bytes([0, red, green, blue])
}

fn dimmed(rgb: Rgb, light: Light) -> Rgb {
    let less = |shift: u32| ((rgb >> shift & 0xff) * 2 / 3) << shift;
    match light {
        Light::Dim => less(16) | less(8) | less(0),
        Light::Normal | Light::Bright => rgb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_palette_is_vgas_and_xterms() {
        let normal = |index| rgb(Color::Indexed(index), Light::Normal);
        for (index, wanted) in [
            (1, 0xaa_0000),
            (15, 0xff_ffff),
            (16, 0),
            (21, 0x00_00ff),
            (208, 0xff_8700),
            (231, 0xff_ffff),
            (232, 0x08_0808),
            (255, 0xee_eeee),
        ] {
            assert_eq!(normal(index), wanted, "{index}");
        }
    }

    #[test]
    fn light_changes_what_it_should() {
        let blue = Color::Named(NamedColor::Blue);
        assert_eq!(rgb(blue, Light::Normal), 0x00_00aa);
        assert_eq!(rgb(blue, Light::Bright), 0x55_55ff);
        assert_eq!(rgb(blue, Light::Dim), 0x00_0071);
        let text = Color::Named(NamedColor::Foreground);
        assert_eq!(rgb(text, Light::Bright), 0xff_ffff);
        assert_eq!(rgb(Color::Indexed(208), Light::Bright), 0xff_8700);
        assert_eq!(rgb(Color::Named(NamedColor::Background), Light::Dim), 0);
    }
}
