//! The lines for what a container engine said.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{ContainerId, ContainerInfo, EngineFact, Timestamp};

#[derive(Serialize, Deserialize)]
pub(super) struct ConnectedEntry<'a> {
    pub at: u64,
    #[serde(borrow)]
    pub engine: Cow<'a, str>,
    pub containers: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AskedEntry<'a> {
    pub at: u64,
    #[serde(borrow)]
    pub engine: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct LostEntry<'a> {
    pub at: u64,
    #[serde(borrow)]
    pub engine: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ContainerEntry<'a> {
    pub at: u64,
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub outer: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub runtime: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub image: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub project: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub service: Option<Cow<'a, str>>,
    /// Sorted by their names, as the model wants them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub host: Option<Cow<'a, str>>,
    /// Process id of its first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<u32>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ContainerExecEntry<'a> {
    pub at: u64,
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    pub container: Cow<'a, str>,
    pub pid: u32,
}

impl ConnectedEntry<'_> {
    pub(super) fn into_model(self) -> EngineFact {
        EngineFact::Connected {
            at: Timestamp(self.at),
            engine: Arc::from(self.engine),
            containers: self.containers,
        }
    }
}

impl AskedEntry<'_> {
    pub(super) fn into_model(self) -> EngineFact {
        EngineFact::Asked { at: Timestamp(self.at), engine: Arc::from(self.engine) }
    }
}

impl LostEntry<'_> {
    pub(super) fn into_model(self) -> EngineFact {
        EngineFact::Lost { at: Timestamp(self.at), engine: Arc::from(self.engine) }
    }
}

impl<'a> ContainerEntry<'a> {
    pub(super) fn new(at: u64, info: &'a ContainerInfo, init: Option<u32>) -> Self {
        let ContainerInfo {
            id,
            outer,
            runtime,
            name,
            image,
            image_digest,
            project,
            service,
            labels,
            host,
        } = info;
        let borrowed = |text: &'a Option<Arc<str>>| text.as_deref().map(Cow::Borrowed);
        let label = |(name, value): &'a (Arc<str>, Arc<str>)| {
            (Cow::Borrowed(&**name), Cow::Borrowed(&**value))
        };
        Self {
            at,
            id: Cow::Borrowed(&id.0),
            outer: outer.as_ref().map(|outer| Cow::Borrowed(&*outer.0)),
            runtime: Cow::Borrowed(runtime),
            name: borrowed(name),
            image: borrowed(image),
            digest: borrowed(image_digest),
            project: borrowed(project),
            service: borrowed(service),
            labels: labels.iter().map(label).collect(),
            host: borrowed(host),
            init,
        }
    }

    pub(super) fn into_model(self) -> EngineFact {
        let owned = |text: Option<Cow<'_, str>>| text.map(Arc::from);
        let info = ContainerInfo {
            id: ContainerId(Arc::from(self.id)),
            outer: owned(self.outer).map(ContainerId),
            runtime: Arc::from(self.runtime),
            name: owned(self.name),
            image: owned(self.image),
            image_digest: owned(self.digest),
            project: owned(self.project),
            service: owned(self.service),
            labels: self
                .labels
                .into_iter()
                .map(|(name, value)| (Arc::from(name), Arc::from(value)))
                .collect(),
            host: owned(self.host),
        };
        EngineFact::Container { at: Timestamp(self.at), info: Arc::new(info), init: self.init }
    }
}

impl ContainerExecEntry<'_> {
    pub(super) fn into_model(self) -> EngineFact {
        EngineFact::Exec {
            at: Timestamp(self.at),
            id: Arc::from(self.id),
            container: ContainerId(Arc::from(self.container)),
            pid: self.pid,
        }
    }
}
