//! What the kernel holds on behalf of a process.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};

/// Ids of the BPF programs and maps that a process holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
}

/// What a process holds through its file descriptors.
pub fn held_by(pid: u32) -> Result<Held> {
    let mut held = Held::default();
    let dir = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&dir).with_context(|| dir.clone())? {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let Ok(id) = value.trim().parse() else { continue };
            match key {
                "prog_id" => held.programs.insert(id),
                "map_id" => held.maps.insert(id),
                _ => continue,
            };
        }
    }
    Ok(held)
}

/// Those of `held` that the kernel still has.
pub fn still_loaded(held: &Held) -> Result<Held> {
    let mut left = Held::default();
    for program in aya::programs::loaded_programs() {
        left.programs.insert(program?.id());
    }
    for map in aya::maps::loaded_maps() {
        left.maps.insert(map?.id());
    }
    left.programs.retain(|id| held.programs.contains(id));
    left.maps.retain(|id| held.maps.contains(id));
    Ok(left)
}
