// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon map`

use crate::command::{device, run, start};
use crate::hints::{answers, finishes};
use crate::rig::guest::{Guest, MIB, USUAL};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn free_pages_and_the_balloons_are_counted_and_drawn() {
    let daemon = device();
    let said = run(&daemon, &["map"]);
    assert!(
        said.complaint().contains("no guest memory to show"),
        "{said:?}"
    );
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let before = run(&daemon, &["map"]);
    assert!(before.output.contains("--hint asks"), "{before:?}");

    let svg = daemon.folder.path().join("map.svg");
    let args = ["map", "--hint", "--json", "--svg", svg.to_str().unwrap()];
    let drawing = start(&daemon, &args);
    answers(&mut guest);
    finishes(&mut guest);
    let json = drawing.wait().json();
    assert_eq!(
        (&json["free"]["pages"], &json["free"]["runs"]),
        (&257.into(), &2.into())
    );
    assert_eq!(json["free"]["longest"]["start"], 8 * MIB);
    assert_eq!(json["balloon"]["pages"], 0);
    assert_eq!(json["regions"][1]["start"], 32 * MIB);
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.contains("16.0 MiB without memory"), "the hole");
    assert!(drawn.contains("free: 1.00 MiB<"));

    // The second half of what was hinted goes into the balloon.
    let mut inflate = guest.queue(0);
    inflate.start(&mut guest.front_end, 0);
    let first = (8 * MIB / 4096) as u32 + 128;
    let numbers: Vec<u8> = (first..first + 128).flat_map(u32::to_le_bytes).collect();
    guest
        .memory
        .write_slice(&numbers, GuestAddress(2 * MIB))
        .unwrap();
    inflate.send(&[crate::rig::queue::Buffer::Out(
        2 * MIB,
        numbers.len() as u32,
    )]);
    let json = run(&daemon, &["map", "--json"]).json();
    assert_eq!(
        (&json["free"]["pages"], &json["balloon"]["pages"]),
        (&129.into(), &128.into())
    );

    // 16 characters a row, of 32 pages each: 8 rows for each region.
    let text = run(&daemon, &["map", "--width", "30"]).output;
    let rows: Vec<&str> = text.lines().take(17).collect();
    for (row, expected) in [
        (0, "         0x0  ................"),
        (
            4,
            "    0x800000  \u{2588}\u{2588}\u{2588}\u{2588}BBBB........",
        ),
        (8, "              (16.0 MiB without memory)"),
        (9, "   0x2000000  ................"),
        (13, "   0x2800000  \u{2591}..............."),
        (16, "   0x2e00000  ................"),
    ] {
        assert_eq!(rows[row], expected, "{text}");
    }
    assert!(
        text.contains("free    516 KiB in 129 page(s), 2 run(s), the longest 512 KiB at 0x800000"),
        "{text}"
    );
}

#[test]
fn a_picture_that_cannot_be_written_is_an_error_with_its_path() {
    let daemon = device();
    let _guest = Guest::boot(&daemon, USUAL, 3);
    let said = run(&daemon, &["map", "--svg", "/nowhere/at/all.svg"]);
    assert!(said.complaint().contains("/nowhere/at/all.svg"), "{said:?}");
}
