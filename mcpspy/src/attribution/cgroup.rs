//! The container that a cgroup's path names.
//!
//! Every engine puts the container's id at the end of one component of the path, so one rule does
//! for all, and for paths that are only known in part: the kernel sends the last components, and a
//! private cgroup namespace shows `/../<id>`. Paths are never compared as a whole.

use std::sync::Arc;

use crate::model::ContainerId;

/// Digits of a container's id.
const DIGITS: usize = 64;

/// What a path says of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    /// Its id.
    pub id: ContainerId,
    /// The outermost container around it, where an engine runs in a container. It is the one that
    /// the host's engine can name.
    pub outer: Option<ContainerId>,
    /// `docker`, `podman`, `containerd`, `cri-o`, `nerdctl`, `ecs`, or nothing where the path does
    /// not say.
    pub runtime: &'static str,
}

/// The innermost container that a path names, `None` where it names none.
pub(super) fn container_of(path: &str) -> Option<Parsed> {
    // What `/proc` adds while the last processes of a removed cgroup go away.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let (mut first, mut last) = (None, None);
    let (mut parent, mut ecs) = ("", false);
    for component in path.split('/') {
        if let Some((before, id)) = id_in(component) {
            first = first.or(Some(id));
            last = Some((id, runtime(before, parent, ecs || id.len() != DIGITS)));
        }
        ecs |= component == "ecs";
        parent = component;
    }
    let (id, runtime) = last?;
    let own = |id: &str| ContainerId(Arc::from(id));
    Some(Parsed { id: own(id), outer: first.filter(|first| *first != id).map(own), runtime })
}

/// The id in a component, and what stands before it.
fn id_in(component: &str) -> Option<(&str, &str)> {
    let unit = [".scope", ".slice", ".service"].iter().find_map(|end| component.strip_suffix(end));
    let text = unit.unwrap_or(component);
    let (before, id) = match text.split_at_checked(text.len().wrapping_sub(DIGITS)) {
        Some((before, id)) if is_hex(id) => (before, id),
        _ if is_ecs(text) => ("", text),
        _ => return None,
    };
    // `<id>.service` is no container: podman runs its health check in it, on the host. conmon
    // stands beside its container.
    let service = before.is_empty() && component.ends_with(".service");
    let separate = before.is_empty() || before.ends_with(['-', ':']);
    (separate && !service && !before.ends_with("conmon-")).then_some((before, id))
}

/// `<32 digits of the task>-<number>`, as ECS on Fargate names containers.
fn is_ecs(text: &str) -> bool {
    text.split_once('-').is_some_and(|(task, number)| {
        let decimal = number.bytes().all(|digit| digit.is_ascii_digit());
        task.len() == 32 && number.len() == 10 && is_hex(task) && decimal
    })
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

fn runtime(before: &str, parent: &str, ecs: bool) -> &'static str {
    // `kubepods-...slice:cri-containerd:<id>` of the first containerd releases.
    let name = before.trim_end_matches(['-', ':']);
    let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
    match (name, parent) {
        ("", _) if ecs => "ecs",
        // Job containers of GitHub's runner are docker's, below a cgroup of the runner.
        ("docker", _) | ("", "docker" | "actions_job" | "moby") => "docker",
        ("libpod" | "libpod-payload", _) | ("", "libpod_parent") => "podman",
        ("cri-containerd", _) | ("", "k8s.io") => "containerd",
        ("crio", _) => "cri-o",
        ("nerdctl", _) | ("", "default") => "nerdctl",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const POD: &str = "pod1f3a_8a1c";

    /// Path (`A`, `B` and `POD` stand for ids), innermost container, outermost one, runtime.
    const NAMED: &[(&str, &str, Option<&str>, &str)] = &[
        ("/docker/A", A, None, "docker"),
        ("docker/A", A, None, "docker"),
        ("A", A, None, ""),
        ("/docker/A (deleted)", A, None, "docker"),
        ("/system.slice/docker-A.scope", A, None, "docker"),
        ("docker-A.scope", A, None, "docker"),
        ("/system.slice/docker-A.scope/init.scope", A, None, "docker"),
        ("/docker/A/system.slice/nginx.service", A, None, "docker"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-A.scope",
            A,
            None,
            "docker",
        ),
        ("/machine.slice/libpod-A.scope", A, None, "podman"),
        ("/machine.slice/libpod-A.scope/container", A, None, "podman"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-A.scope/container",
            A,
            None,
            "podman",
        ),
        ("/libpod_parent/libpod-A", A, None, "podman"),
        ("/libpod_parent/A", A, None, "podman"),
        ("/system.slice/web.service/libpod-payload-A", A, None, "podman"),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-POD.slice/cri-containerd-A.scope",
            A,
            None,
            "containerd",
        ),
        ("/kubepods.slice/kubepods-POD.slice/crio-A.scope", A, None, "cri-o"),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-POD.slice/docker-A.scope",
            A,
            None,
            "docker",
        ),
        ("/kubepods/burstable/POD/A", A, None, ""),
        (
            "/system.slice/containerd.service/kubepods-burstable-POD.slice:cri-containerd:A",
            A,
            None,
            "containerd",
        ),
        (
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-POD.slice/cri-containerd-A.scope",
            A,
            None,
            "containerd",
        ),
        (
            "/docker/B/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-POD.slice/cri-containerd-A.scope",
            A,
            Some(B),
            "containerd",
        ),
        ("/k8s.io/A", A, None, "containerd"),
        ("/system.slice/nerdctl-A.scope", A, None, "nerdctl"),
        ("/default/A", A, None, "nerdctl"),
        ("/ecs/9d1e6a1c-2e3f-4a5b-8c7d-0123456789ab/A", A, None, "ecs"),
        ("/ecs/0123456789abcdef0123456789abcdef/A", A, None, "ecs"),
        (
            "/ecs/0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef-1234567890",
            "0123456789abcdef0123456789abcdef-1234567890",
            None,
            "ecs",
        ),
        ("/ecstasks.slice/ecstasks-0123.slice/docker-A.scope", A, None, "docker"),
        ("/actions_job/A", A, None, "docker"),
        ("/../A", A, None, ""),
        ("/../../docker/A", A, None, "docker"),
        ("/../docker-A.scope", A, None, "docker"),
        ("/docker/B/docker/A", A, Some(B), "docker"),
        ("/system.slice/docker-B.scope/system.slice/docker-A.scope", A, Some(B), "docker"),
        ("/../B/docker/A", A, Some(B), "docker"),
        ("/docker/A/docker/A", A, None, "docker"),
        // conmon in a container belongs to that container.
        ("/docker/B/machine.slice/libpod-conmon-A.scope", B, None, "docker"),
        // Whatever a runtime is called.
        ("/machine.slice/wonder-A.scope", A, None, ""),
    ];

    const UNNAMED: &[&str] = &[
        "",
        "/",
        "//",
        "/../..",
        "/init.scope",
        "/system.slice/ssh.service",
        "/system.slice/docker.service",
        "/user.slice/user-1000.slice/session-3.scope",
        "/docker",
        "/docker/buildkit/x4k2v9m1n8",
        "/machine.slice/libpod-conmon-A.scope",
        "/kubepods.slice/kubepods-POD.slice/crio-conmon-A.scope",
        "/system.slice/A.service",
        "/kubepods.slice/kubepods-POD.slice",
        "/docker/A0",
        "/docker/0A",
        "/docker/0123456789ab",
        "/docker/0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF",
        "/system.slice/var-lib-docker-overlay2-A-merged.mount",
        "/system.slice/run-docker-runtime-A-runc.x.mount",
        "/ecs/0123456789abcdef0123456789abcdef",
        "/x/0123456789abcdef0123456789abcdef-123456789",
        "/x/0123456789abcdef0123456789abcdef-12345678901",
        "/docker/\u{e9}\u{e9}\u{e9}\u{e9}",
    ];

    fn path(shape: &str) -> String {
        // Letters of paths are small, so the capitals are placeholders, except in hexadecimal.
        if shape.contains("ABCDEF") {
            return shape.to_owned();
        }
        shape.replace("POD", POD).replace('A', A).replace('B', B)
    }

    #[test]
    fn the_container_is_read_from_the_path() {
        for &(shape, id, outer, runtime) in NAMED {
            let own = |id: &str| ContainerId(id.into());
            let expected = Parsed { id: own(id), outer: outer.map(own), runtime };
            assert_eq!(container_of(&path(shape)), Some(expected), "{shape}");
        }
    }

    #[test]
    fn other_paths_name_none() {
        for shape in UNNAMED {
            assert_eq!(container_of(&path(shape)), None, "{shape}");
        }
    }

    #[test]
    fn no_path_panics() {
        for &(shape, ..) in NAMED {
            let path = format!("{}\u{1f680}{}", path(shape), path(shape));
            for end in (0..path.len()).filter(|end| path.is_char_boundary(*end)) {
                let _parsed = (container_of(&path[..end]), container_of(&path[end..]));
            }
        }
    }
}
