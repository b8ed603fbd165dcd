//! `container` of an end, and what an engine says of its host.

use super::{Line, first_key, json, key};
use crate::model::{ContainerInfo, Endpoint, EventBody};

/// What the server's container engine calls its host, else the client's: inside a container the
/// kernel only knows the container's own name.
pub(super) fn host(body: &EventBody) -> Option<&str> {
    let (session, ends): (_, [Option<&Endpoint>; 2]) = match body {
        EventBody::Message(message) => (Some(&message.session), [None, None]),
        EventBody::Session(event) => (Some(&event.session), [None, None]),
        EventBody::Finding(finding) => {
            (finding.session.as_ref(), [Some(&finding.to), Some(&finding.from)])
        }
        EventBody::Lost(lost) => (lost.session.as_ref(), [lost.from.as_ref(), None]),
        EventBody::Status(_) => return None,
    };
    let session =
        session.into_iter().flat_map(|session| [&session.server_end, &session.client_end]);
    session
        .chain(ends.into_iter().flatten())
        .find_map(|end| end.container.as_ref()?.host.as_deref())
}

impl Line<'_> {
    pub(super) fn container(&mut self, container: &ContainerInfo) {
        first_key!(self, "id");
        self.name(&container.id.0);
        if let Some(name) = &container.name {
            key!(self, "name");
            self.name(name);
        }
        if let Some(image) = &container.image {
            key!(self, "image");
            self.name(image);
        }
        if let Some(digest) = &container.image_digest {
            key!(self, "image_digest");
            self.name(digest);
        }
        if !container.runtime.is_empty() {
            key!(self, "runtime");
            self.name(&container.runtime);
        }
        if let Some(project) = &container.project {
            key!(self, "project");
            self.name(project);
        }
        if let Some(service) = &container.service {
            key!(self, "service");
            self.name(service);
        }
        self.labels(container);
        key!(self, "match");
        // Every engine names its containers; a cgroup only has the id.
        self.word(if container.name.is_some() { "engine" } else { "cgroup" });
        if let Some(outer) = &container.outer {
            key!(self, "outer");
            self.name(&outer.0);
        }
        self.out.push(b'}');
    }

    /// Those that the user asked for and that it has.
    fn labels(&mut self, container: &ContainerInfo) {
        let labels = self.labels;
        let shown = labels.iter().filter_map(|name| Some((name, container.label(name)?)));
        let mut open = false;
        for (name, value) in shown {
            if self.limits.no_labels {
                self.cut = true;
                continue;
            }
            if open {
                self.out.push(b',');
            } else {
                key!(self, "labels");
                self.out.push(b'{');
                open = true;
            }
            json::push_str(self.out, name);
            self.out.push(b':');
            self.name(value);
        }
        if open {
            self.out.push(b'}');
        }
    }
}
