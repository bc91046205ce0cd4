//! What is on the screen, cell by cell, and how it becomes pixels.
//!
//! There is no framebuffer. A picture is a few bytes per character; who needs pixels paints the cells that he sends,
//! one band at a time. So memory goes with the number of characters, not of pixels, and to find out what changed is to
//! compare cells.

use crate::colour::{BACKGROUND, FOREGROUND, Rgb};
use crate::font::{Glyph, HEIGHT, WIDTH, Weight};

/// Columns and rows of characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// How a cell differs from plain text. The bits are independent of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Style(u8);

impl Style {
    /// The strong face.
    pub const BOLD: Self = Self(1);
    /// A line below.
    pub const UNDERLINE: Self = Self(1 << 1);
    /// A line through it.
    pub const STRIKE: Self = Self(1 << 2);
    /// The text cursor as a thick line below.
    pub const CURSOR_BELOW: Self = Self(1 << 3);
    /// The text cursor as a line before.
    pub const CURSOR_BEFORE: Self = Self(1 << 4);

    /// Both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it has this one.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A character on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Its shape.
    pub glyph: Glyph,
    /// Lines and weight.
    pub style: Style,
    /// Its colour.
    pub foreground: Rgb,
    /// The colour behind it.
    pub background: Rgb,
}

impl Cell {
    /// Nothing to see.
    pub const BLANK: Self = Self {
        glyph: Glyph::BLANK,
        style: Style(0),
        foreground: FOREGROUND,
        background: BACKGROUND,
    };

    /// One row of its pixels, from the left.
    fn row(&self, y: usize, shape: u8) -> [Rgb; WIDTH] {
        let thick = self.style.has(Style::CURSOR_BELOW) && y >= HEIGHT - 2;
        let below = self.style.has(Style::UNDERLINE) && y == HEIGHT - 2;
        let through = self.style.has(Style::STRIKE) && y == HEIGHT / 2;
        let before = if self.style.has(Style::CURSOR_BEFORE) { 0b1100_0000 } else { 0 };
        let ink = if thick || below || through { 0xff } else { shape | before };
        let colour =
            |x: usize| if ink & (0x80 >> x) == 0 { self.background } else { self.foreground };
        std::array::from_fn(colour)
    }
}

/// A rectangle of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// First column.
    pub column: u16,
    /// First row.
    pub row: u16,
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A whole screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    size: Size,
    cells: Vec<Cell>,
}

impl Picture {
    /// An empty one.
    #[must_use]
    pub fn new(size: Size) -> Self {
        let cells = vec![Cell::BLANK; usize::from(size.columns) * usize::from(size.rows)];
        Self { size, cells }
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// A cell; blank beyond the edge.
    #[must_use]
    pub fn cell(&self, column: u16, row: u16) -> Cell {
        self.row(row).get(usize::from(column)).copied().unwrap_or(Cell::BLANK)
    }

    /// A row; empty beyond the edge.
    #[must_use]
    pub fn row(&self, row: u16) -> &[Cell] {
        let columns = usize::from(self.size.columns);
        let from = usize::from(row) * columns;
        self.cells.get(from..from + columns).unwrap_or_default()
    }

    /// A row to paint on; empty beyond the edge.
    pub fn row_mut(&mut self, row: u16) -> &mut [Cell] {
        let columns = usize::from(self.size.columns);
        let from = usize::from(row) * columns;
        self.cells.get_mut(from..from + columns).unwrap_or_default()
    }

    /// Paints cells: `width` times `height` pixels, row by row, of which the first is that of the area's first cell.
    /// Less than the area is painted if they are fewer, blank cells if the area reaches beyond the picture.
    pub fn paint(&self, area: Area, width: usize, height: usize, pixels: &mut Vec<Rgb>) {
        pixels.clear();
        pixels.resize(width * height, BACKGROUND);
        for row in 0..area.rows {
            let top = usize::from(row) * HEIGHT;
            for column in 0..area.columns {
                let left = usize::from(column) * WIDTH;
                let cell = self.cell(area.column + column, area.row + row);
                let bold = cell.style.has(Style::BOLD);
                let shape = cell.glyph.rows(if bold { Weight::Bold } else { Weight::Regular });
                let seen = WIDTH.min(width.saturating_sub(left));
                let visible = height.saturating_sub(top);
                for (y, shape) in shape.into_iter().enumerate().take(visible) {
                    let from = (top + y) * width + left;
                    let line = cell.row(y, shape);
                    pixels[from..from + seen].copy_from_slice(&line[..seen]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Area = Area { column: 0, row: 0, columns: 2, rows: 1 };

    fn painted(cell: Cell) -> Vec<String> {
        let mut picture = Picture::new(Size { columns: 2, rows: 1 });
        picture.row_mut(0)[1] = cell;
        let mut pixels = Vec::new();
        picture.paint(ALL, 2 * WIDTH, HEIGHT, &mut pixels);
        let text = |rgb: &Rgb| if *rgb == FOREGROUND { '#' } else { '.' };
        pixels.chunks(2 * WIDTH).map(|row| row.iter().map(text).collect()).collect()
    }

    #[test]
    fn styles_draw_their_lines() {
        let styled = |style| painted(Cell { style, ..Cell::BLANK });
        let (none, line) = ("................", "........########");
        for (style, at) in [
            (Style::UNDERLINE, vec![14]),
            (Style::STRIKE, vec![8]),
            (Style::CURSOR_BELOW, vec![14, 15]),
            (Style::UNDERLINE.with(Style::STRIKE), vec![8, 14]),
        ] {
            let wanted: Vec<_> =
                (0..16).map(|y| if at.contains(&y) { line } else { none }).collect();
            assert_eq!(styled(style), wanted, "{style:?}");
        }
        assert_eq!(styled(Style::CURSOR_BEFORE), ["........##......"; 16]);
    }

    #[test]
    fn pixels_are_cut_at_the_edge_and_blank_beyond_the_picture() {
        let mut picture = Picture::new(Size { columns: 1, rows: 1 });
        picture.row_mut(0)[0] = Cell { background: 7, ..Cell::BLANK };
        let mut pixels = vec![9; 3];
        picture.paint(ALL, 10, 3, &mut pixels);
        assert_eq!(pixels, [[7; 8].as_slice(), &[0; 2]].concat().repeat(3));
    }
}
