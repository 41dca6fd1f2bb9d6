// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon map`: which pages the guest has hinted to be free, and which are in the balloon.
//!
//! | module | what it is |
//! |---|---|
//! | [`layers`] | the pages of each kind, to be counted and drawn |
//! | [`numbers`] | how many pages there are, and how long their runs are |
//! | [`picture`] | the address space cut into cells of equal size |
//! | [`terminal`], [`svg`] | the picture, drawn |

pub mod layers;
pub mod numbers;
pub mod picture;
pub mod svg;
pub mod terminal;

use std::time::Duration;

use serde_json::json;
use spec::PAGE_SIZE;
use spec::control::PageSet;
use spec::page_map::PageMap;

use super::args::MapArgs;
use super::device::Device;
use super::{BalloonError, hints, print};
use crate::terminal as stdout;
use layers::Layers;
use numbers::Numbers;
use picture::Picture;

/// How long the guest may take for its hints.
const HINT_TIMEOUT: Duration = Duration::from_secs(30);
/// Cells of the picture in an SVG file.
const SVG_ROW: usize = 128;
/// The most cells that an SVG picture has.
const SVG_CELLS: usize = SVG_ROW * 64;
/// The most rows that regions take on the terminal.
const TERMINAL_ROWS: usize = 20;

/// `lacuna balloon map`
///
/// # Errors
/// [`BalloonError`] if there is no map, or it cannot be written.
pub fn map(args: &MapArgs) -> Result<(), BalloonError> {
    let mut device = Device::connect(&args.device)?;
    if args.hint {
        hints::whole_round(&mut device, HINT_TIMEOUT)?;
    }
    let hinted = device.page_map(PageSet::Hinted)?;
    let ballooned = device.page_map(PageSet::Ballooned)?;
    let hinted = hinted.as_deref().map(PageMap::parse).transpose()?;
    let ballooned = ballooned.as_deref().map(PageMap::parse).transpose()?;
    let Some(memory) = ballooned
        .or(hinted)
        .filter(|map| map.regions().next().is_some())
    else {
        let text = "no VMM is connected to the balloon device: there is no guest memory to show";
        return Err(BalloonError::Guest(text.into()));
    };
    let layers = Layers::new(memory.regions().collect(), hinted, ballooned);
    if let Some(path) = &args.svg {
        let picture = Picture::new(&layers, SVG_ROW, SVG_CELLS);
        std::fs::write(path, svg::draw(&layers, &picture)).map_err(|source| {
            BalloonError::Write {
                what: path.display().to_string(),
                source,
            }
        })?;
    }
    let text = || {
        let colour = stdout::has_colours();
        let width = args.width.map_or_else(stdout::width, usize::from);
        let row = terminal::cells_in(width, colour);
        let picture = Picture::new(&layers, row, row * TERMINAL_ROWS);
        let mut text = terminal::draw(&picture, colour);
        text += &numbers_text(&layers);
        if hinted.is_none() {
            text += "The guest has not been asked for its free pages: --hint asks.\n";
        }
        text
    };
    let text = if args.device.json {
        String::new()
    } else {
        text()
    };
    print(args.device.json, &as_json(&layers), &text)
}

fn numbers_text(layers: &Layers) -> String {
    let mut text = String::from("\n");
    for (name, numbers) in named(layers) {
        text += &numbers.to_text(name);
    }
    text
}

fn as_json(layers: &Layers) -> serde_json::Value {
    let regions: Vec<_> = layers
        .regions()
        .iter()
        .map(|region| json!({"start": region.first() * PAGE_SIZE, "bytes": region.bytes()}))
        .collect();
    let mut json = json!({
        "memory-bytes": layers.memory_pages() * PAGE_SIZE,
        "regions": regions,
    });
    for (name, numbers) in named(layers) {
        json[name] = numbers.to_json();
    }
    json
}

/// The numbers of each kind of pages whose map is known.
fn named(layers: &Layers) -> impl Iterator<Item = (&'static str, Numbers)> {
    [("free", layers.free()), ("balloon", layers.ballooned())]
        .into_iter()
        .filter_map(|(name, runs)| Some((name, Numbers::count(runs?))))
}
