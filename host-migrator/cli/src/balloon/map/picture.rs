// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The address space cut into cells of equal size, in rows. Holes between regions are rows of their own.

use spec::PageRange;

use super::layers::{Layers, Share};

/// A picture before it is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pages of a cell: a power of two.
    pub cell_pages: u64,
    /// The rows, from the lowest address up.
    pub rows: Vec<Row>,
}

/// One line of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Guest memory of a single region.
    Memory {
        /// The first page.
        first: u64,
        /// The cells. The last row of a region may be shorter than the others.
        cells: Vec<Share>,
    },
    /// Addresses without guest memory.
    Hole(PageRange),
}

impl Picture {
    /// A picture with rows of `row` cells, and about `cells` of them at most.
    pub fn new(layers: &Layers<'_>, row: usize, cells: usize) -> Self {
        let row = row.max(1) as u64;
        let cell_pages = layers
            .memory_pages()
            .div_ceil(cells.max(1) as u64)
            .max(1)
            .next_power_of_two();
        let mut rows = Vec::new();
        let mut end = 0;
        for region in layers.regions() {
            rows.extend(PageRange::new(end, region.first() - end).map(Row::Hole));
            end = region.end();
            let lines = pieces(*region, row * cell_pages);
            rows.extend(lines.map(|line| {
                Row::Memory {
                    first: line.first(),
                    cells: pieces(line, cell_pages)
                        .map(|cell| layers.share(cell))
                        .collect(),
                }
            }));
        }
        Self { cell_pages, rows }
    }
}

/// Splits `range` into pieces of `size` pages; the last may be smaller.
fn pieces(range: PageRange, size: u64) -> impl Iterator<Item = PageRange> {
    (0..range.count().div_ceil(size)).filter_map(move |index| {
        let first = range.first() + index * size;
        PageRange::new(first, size.min(range.end() - first))
    })
}

#[cfg(test)]
mod tests {
    use super::super::layers::tests::{range, with_layers};
    use super::*;

    #[test]
    fn rows_begin_with_their_region_and_holes_stand_between_them() {
        let memory = [range(0, 10), range(20, 5)];
        let picture = with_layers(&memory, &[range(2, 4)], &[range(20, 5)], |layers| {
            Picture::new(layers, 4, 8)
        });
        let cell = |pages, free, ballooned| Share {
            pages,
            free,
            ballooned,
        };
        let memory = |first, cells: &[Share]| Row::Memory {
            first,
            cells: cells.to_vec(),
        };
        assert_eq!(picture.cell_pages, 2);
        assert_eq!(
            picture.rows,
            [
                memory(
                    0,
                    &[cell(2, 0, 0), cell(2, 2, 0), cell(2, 2, 0), cell(2, 0, 0)]
                ),
                memory(8, &[cell(2, 0, 0)]),
                Row::Hole(range(10, 10)),
                memory(20, &[cell(2, 0, 2), cell(2, 0, 2), cell(1, 0, 1)]),
            ]
        );
    }

    #[test]
    fn memory_high_up_is_drawn_as_large_as_any_other() {
        let memory = [range(1 << 30, 64)];
        let layers = Layers::new(memory.to_vec(), None, None);
        let picture = Picture::new(&layers, 8, 16);
        assert_eq!(picture.cell_pages, 4);
        assert_eq!(picture.rows.len(), 3);
        assert_eq!(picture.rows[0], Row::Hole(range(0, 1 << 30)));
    }
}
