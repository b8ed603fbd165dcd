//! The kernel takes every variant of the programs, so that each can stand in for the one before it.

use super::*;

#[test]
fn every_way_to_read_the_kernel_is_accepted() {
    if !built() || !rustix::process::geteuid().is_root() {
        return;
    }
    let mut kernel = Kernel::read().unwrap();
    let config = LiveConfig {
        ring_bytes: 1 << 16,
        watch_tree: true,
        container_filter: true,
        ..LiveConfig::default()
    };
    for has_loop in [true, false] {
        kernel.has_loop &= has_loop;
        for backend in [Backend::TpBtf, Backend::RawTp] {
            for reads in Reads::ALL {
                let attempt = Attempt { backend, reads };
                let what = format!("{attempt:?}, bpf_loop: {}", kernel.has_loop);
                match load(&kernel, attempt, &config) {
                    Ok(_) => {}
                    Err(Refusal::Program { hook, error, .. }) => {
                        panic!("{what} at {hook}: {error}")
                    }
                    Err(Refusal::Other(error)) => panic!("{what}: {error}"),
                }
            }
        }
    }
}

#[test]
fn only_marked_calls_are_replaced() {
    let [a, b, c, d] = CAST_MARK.to_ne_bytes();
    let object = [[0x85, 0, 0, 0, a, b, c, d], [0x85, 0, 0, 0, 1, 0, 0, 0]].concat();
    let patched = Cast { function: 0x0102_0304, number_type: 1 }.put_into(&object);
    let expected = [[0x85, 0x20, 0, 0, 4, 3, 2, 1], [0x85, 0, 0, 0, 1, 0, 0, 0]].concat();
    assert_eq!(patched.as_bytes(), expected);
}
