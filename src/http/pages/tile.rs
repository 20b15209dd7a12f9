//! A product's tile: a pattern in colours, both its own. There are no pictures of products.

use std::fmt::Write;

use maud::{Markup, html};
use xxhash_rust::xxh3::xxh3_64;

/// As many as `style.css` has colours for.
const HUES: u64 = 8;
const COLUMNS: u32 = 4;
const ROWS: u32 = 3;
const CELL: u32 = 30;

/// One motif in a cell of 30 × 30, each layer drawn from the middle of the cell.
struct Motif {
    under: &'static str,
    over: &'static str,
}

const MOTIFS: [Motif; 6] = [
    // The eight-pointed star, of two squares.
    Motif { under: "m-10-10h20v20h-20zm10-4.1l14.1 14.1-14.1 14.1-14.1-14.1z", over: "m0-6l6 6-6 6-6-6z" },
    // A kilim's diamonds.
    Motif { under: "m0-15l15 15-15 15-15-15z", over: "m0-9l9 9-9 9-9-9zm0 5l-4 4 4 4 4-4z" },
    // Roof tiles.
    Motif { under: "m-15 0a15 15 0 0 1 30 0v15h-30z", over: "m-9 4a9 9 0 0 1 18 0v11h-18z" },
    // Leaves.
    Motif {
        under: "m-15-15a30 30 0 0 1 30 30a30 30 0 0 1-30-30z",
        over: "m15-15a8 8 0 0 1-8 8a8 8 0 0 1 8-8zm-30 30a8 8 0 0 1 8-8a8 8 0 0 1-8 8z",
    },
    // Weave.
    Motif { under: "m-15-15h15l15 15v15l-15-15h-15z", over: "m-15 15v-6l6 6zm30-30v6l-6-6z" },
    // Lattice.
    Motif {
        under: "m-15-3h12v-12h6v12h12v6h-12v12h-6v-12h-12z",
        over: "m-15-15h6l-6 6zm30 0v6l-6-6zm0 30h-6l6-6zm-30 0v-6l6 6z",
    },
];

/// The shop's own.
pub fn sign() -> Markup {
    pattern(&MOTIFS[0], 5)
}

/// The tile of whatever has this id.
pub fn tile(id: &str) -> Markup {
    let seed = xxh3_64(id.as_bytes());
    pattern(&MOTIFS[usize::try_from(seed / HUES % MOTIFS.len() as u64).unwrap_or(0)], seed % HUES)
}

fn pattern(motif: &Motif, hue: u64) -> Markup {
    let layer = |shape: &str| {
        let mut path = String::with_capacity(900);
        for (x, y) in (0..ROWS).flat_map(|y| (0..COLUMNS).map(move |x| (x, y))) {
            let (x, y) = (x * CELL + CELL / 2, y * CELL + CELL / 2);
            let _ = write!(path, "M{x} {y}{shape}");
        }
        path
    };
    html! {
        svg class=(format!("tile hue-{hue}")) viewBox="0 0 120 90" preserveAspectRatio="xMidYMid slice" aria-hidden="true" focusable="false" {
            path .under d=(layer(motif.under)) {}
            path .over fill-rule="evenodd" d=(layer(motif.over)) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_has_one_tile_and_another_thing_another() {
        let tiles: std::collections::BTreeSet<String> =
            (0..1_000).map(|index| tile(&format!("prod_{index}")).into_string()).collect();
        assert_eq!(tiles.len(), MOTIFS.len() * usize::try_from(HUES).unwrap());
        assert_eq!(tile("prod_1").into_string(), tile("prod_1").into_string());
    }
}
