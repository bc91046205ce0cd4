//! What one client has on its screen, and what to send so that it becomes the picture.
//!
//! The client's screen is kept as cells. An update is planned by comparing them with the picture: first one CopyRect if
//! the text scrolled, then rectangles around what differs. Rectangles are encoded one by one as the client reads, from
//! the picture of that moment; so a slow client gets fewer and newer pictures, and what waits for it is never more than
//! a rectangle or two. A rectangle that was planned is sent even if it changed back meanwhile, since their number stands
//! at the beginning of an update.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::encode::{MAX_HEIGHT, MAX_WIDTH};
use super::message::Region;
use crate::font::{HEIGHT, WIDTH};
use crate::picture::{Area, Cell, Picture};

/// Cells between two differences that are sent along rather than to begin a new rectangle.
const GAP: u16 = 4;
/// Rows that have to be saved by copying.
const WORTH_COPYING: u16 = 2;

const MAX_COLUMNS: u16 = (MAX_WIDTH / WIDTH) as u16;
const MAX_ROWS: u16 = (MAX_HEIGHT / HEIGHT) as u16;

/// A size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pixels {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl Pixels {
    /// A region that covers it.
    #[must_use]
    pub fn all(self) -> Region {
        Region { x: 0, y: 0, width: self.width, height: self.height }
    }
}

/// A client's screen.
#[derive(Debug)]
pub struct View {
    pixels: Pixels,
    columns: u16,
    rows: u16,
    /// `None` where nobody knows what the client has.
    shown: Vec<Option<Cell>>,
    wanted: Option<Area>,
    /// What of it the client lost.
    forgotten: Option<Area>,
    planned: VecDeque<Area>,
}

/// An update in the making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// To be sent first.
    pub copy: Option<Copied>,
    /// How many rectangles follow.
    pub rectangles: u16,
}

/// Rows that the client has elsewhere already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Where they go.
    pub to: Region,
    /// The pixel row where they are; the column is the same.
    pub from_y: u16,
}

/// Whether a client can copy on its own screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// It can.
    Able,
    /// It cannot.
    Unable,
}

impl View {
    /// A screen of which nothing is known.
    #[must_use]
    pub fn new(pixels: Pixels) -> Self {
        let columns = pixels.width.div_ceil(WIDTH as u16);
        let rows = pixels.height.div_ceil(HEIGHT as u16);
        let shown = vec![None; usize::from(columns) * usize::from(rows)];
        Self {
            pixels,
            columns,
            rows,
            shown,
            wanted: None,
            forgotten: None,
            planned: VecDeque::new(),
        }
    }

    /// Its size.
    #[must_use]
    pub fn pixels(&self) -> Pixels {
        self.pixels
    }

    /// Whether all rectangles of the last update were taken.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.planned.is_empty()
    }

    /// The client wants to see this region. Nothing is sent before it says so.
    pub fn want(&mut self, region: Region, incremental: bool) {
        let Some(area) = self.area(region) else { return };
        if !incremental {
            // When it is planned, not for each of the messages that ask for it.
            self.forgotten = Some(self.forgotten.map_or(area, |before| union(before, area)));
        }
        self.wanted = Some(self.wanted.map_or(area, |wanted| union(wanted, area)));
    }

    /// Whether the client waits for an update.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// The client lost what it had, because its pixels have another form now.
    pub fn forget_all(&mut self) {
        self.shown.fill(None);
    }

    /// Begins an update; `None` if nothing is wanted or nothing changed. The last one has to be done.
    pub fn plan(&mut self, picture: &Picture, copying: Copying) -> Option<Plan> {
        let wanted = self.wanted?;
        if let Some(area) = self.forgotten.take() {
            self.forget(area);
        }
        let all = Area { column: 0, row: 0, columns: self.columns, rows: self.rows };
        let copy = match copying {
            Copying::Able if wanted == all => self.copy(picture),
            Copying::Able | Copying::Unable => None,
        };
        self.find(picture, wanted);
        // There are less than 2^16 cells, so rectangles as well: see the limits of the terminal's size.
        let rectangles = self.planned.len() as u16;
        if copy.is_none() && rectangles == 0 {
            return None;
        }
        self.wanted = None;
        Some(Plan { copy, rectangles })
    }

    /// The next rectangle of the update, which the client has from now on; its pixels go to `pixels`.
    pub fn next_rectangle(&mut self, picture: &Picture, pixels: &mut Vec<u32>) -> Option<Region> {
        let area = self.planned.pop_front()?;
        for row in area.row..area.row + area.rows {
            for column in area.column..area.column + area.columns {
                if let Some(at) = self.at(column, row) {
                    self.shown[at] = Some(picture.cell(column, row));
                }
            }
        }
        let region = self.region(area);
        picture.paint(area, region.width.into(), region.height.into(), pixels);
        Some(region)
    }

    fn at(&self, column: u16, row: u16) -> Option<usize> {
        let inside = column < self.columns && row < self.rows;
        inside.then(|| usize::from(row) * usize::from(self.columns) + usize::from(column))
    }

    fn differs(&self, picture: &Picture, column: u16, row: u16) -> bool {
        let known = self.at(column, row).and_then(|at| self.shown[at]);
        known != Some(picture.cell(column, row))
    }

    fn forget(&mut self, area: Area) {
        for row in area.row..area.row + area.rows {
            for column in area.column..area.column + area.columns {
                if let Some(at) = self.at(column, row) {
                    self.shown[at] = None;
                }
            }
        }
    }

    /// Rectangles around all differences. Rows that differ at the same columns become one.
    fn find(&mut self, picture: &Picture, within: Area) {
        let mut open: Vec<Area> = Vec::new();
        for row in within.row..within.row + within.rows {
            let mut next: Vec<Area> = Vec::new();
            for (column, columns) in self.spans(picture, within, row) {
                let same = |area: &Area| area.column == column && area.columns == columns;
                let above = open.iter().position(same).map(|at| open.remove(at));
                next.push(match above {
                    Some(area) if area.rows < MAX_ROWS => Area { rows: area.rows + 1, ..area },
                    above => {
                        self.planned.extend(above);
                        Area { column, row, columns, rows: 1 }
                    }
                });
            }
            self.planned.extend(open);
            open = next;
        }
        self.planned.extend(open);
    }

    /// Where a row differs: first column and number of columns.
    fn spans(&self, picture: &Picture, within: Area, row: u16) -> Vec<(u16, u16)> {
        let mut spans: Vec<(u16, u16)> = Vec::new();
        for column in within.column..within.column + within.columns {
            if !self.differs(picture, column, row) {
                continue;
            }
            match spans.last_mut() {
                Some((first, columns))
                    if column - (*first + *columns) <= GAP && column - *first < MAX_COLUMNS =>
                {
                    *columns = column - *first + 1;
                }
                _ => spans.push((column, 1)),
            }
        }
        spans
    }

    /// The longest run of rows that stands elsewhere now, if that saves something; the client has it there from now on.
    fn copy(&mut self, picture: &Picture) -> Option<Copied> {
        let old: Vec<Option<u64>> = (0..self.rows).map(|row| self.hash(row)).collect();
        let new: Vec<u64> = (0..self.rows).map(|row| self.hash_of(picture, row)).collect();
        let same = |from: usize, to: usize| old[from].is_some_and(|hash| hash == new[to]);
        let (rows, mut best) = (usize::from(self.rows), (usize::from(WORTH_COPYING), 0, 0, 0));
        for shift in 1..rows {
            // Up, then down.
            for (from, to) in [(shift, 0), (0, shift)] {
                let (mut run, mut saved) = (0, 0);
                for n in 0..rows - shift {
                    (run, saved) = match same(from + n, to + n) {
                        true => (run + 1, saved + usize::from(!same(to + n, to + n))),
                        false => (0, 0),
                    };
                    if saved > best.0 {
                        best = (saved, from + n + 1 - run, to + n + 1 - run, run);
                    }
                }
            }
        }
        let (_, from, to, run) = best;
        if run == 0 {
            return None;
        }
        let columns = usize::from(self.columns);
        self.shown.copy_within(from * columns..(from + run) * columns, to * columns);
        // All three are rows of this screen.
        let (from, to, run) = (from as u16, to as u16, run as u16);
        let area = |row| Area { column: 0, row, columns: self.columns, rows: run };
        let (from, to) = (self.region(area(from)), self.region(area(to)));
        // The last row may be cut off by the edge; both then, since what was cut there is nowhere.
        let height = from.height.min(to.height);
        if height < to.height || height < from.height {
            self.forget(Area {
                column: 0,
                row: (to.y / HEIGHT as u16) + run - 1,
                columns: self.columns,
                rows: 1,
            });
        }
        Some(Copied { to: Region { height, ..to }, from_y: from.y })
    }

    fn hash(&self, row: u16) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        for column in 0..self.columns {
            hash_cell(self.at(column, row).and_then(|at| self.shown[at])?, &mut hasher);
        }
        Some(hasher.finish())
    }

    fn hash_of(&self, picture: &Picture, row: u16) -> u64 {
        let mut hasher = DefaultHasher::new();
        for column in 0..self.columns {
            hash_cell(picture.cell(column, row), &mut hasher);
        }
        hasher.finish()
    }

    /// The pixels of cells, cut at the edge.
    fn region(&self, area: Area) -> Region {
        let (x, y) = (area.column * WIDTH as u16, area.row * HEIGHT as u16);
        Region {
            x,
            y,
            width: (area.columns * WIDTH as u16).min(self.pixels.width - x),
            height: (area.rows * HEIGHT as u16).min(self.pixels.height - y),
        }
    }

    /// The cells of pixels, as far as they are on the screen.
    fn area(&self, region: Region) -> Option<Area> {
        let end = |from: u16, length: u16, cell: usize, most: u16| {
            from.saturating_add(length).div_ceil(cell as u16).min(most)
        };
        let (column, row) = (region.x / WIDTH as u16, region.y / HEIGHT as u16);
        let right = end(region.x, region.width, WIDTH, self.columns);
        let below = end(region.y, region.height, HEIGHT, self.rows);
        let (columns, rows) = (right.checked_sub(column)?, below.checked_sub(row)?);
        (columns > 0 && rows > 0 && region.width > 0 && region.height > 0).then_some(Area {
            column,
            row,
            columns,
            rows,
        })
    }
}

fn hash_cell(cell: Cell, hasher: &mut DefaultHasher) {
    (cell.glyph, cell.style, cell.foreground, cell.background).hash(hasher);
}

fn union(a: Area, b: Area) -> Area {
    let (column, row) = (a.column.min(b.column), a.row.min(b.row));
    let right = (a.column + a.columns).max(b.column + b.columns);
    let below = (a.row + a.rows).max(b.row + b.rows);
    Area { column, row, columns: right - column, rows: below - row }
}

#[cfg(test)]
mod tests;
