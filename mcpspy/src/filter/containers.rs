//! Which containers the user wants to see. Pure.
//!
//! A session has two ends, and each may run in a container. It is kept when one of them is wanted:
//! a client outside does not lose its requests. It is left out when one of them is unwanted: half of
//! what a container says is still what it says.

use std::str::FromStr;

use super::{GlobError, Globs};
use crate::model::{ContainerInfo, Endpoint};

/// Label by which a container says itself whether it may be watched.
const ENABLE: &str = "mcpspy.enable";

/// Fewest digits of an id that name a container: fewer would meet names by accident.
const SHORTEST_ID: usize = 4;

/// A label, with any value or with one that matches: `name` or `name=glob`.
#[derive(Clone, Debug)]
pub struct LabelRule {
    name: String,
    value: Option<Globs>,
    /// As the user wrote it.
    text: String,
}

/// Which containers to look for. An empty list says nothing about its kind.
#[derive(Clone, Debug, Default)]
pub struct ContainerRules {
    /// Name, beginning of the id, Compose service, or `project/service`.
    pub container: Vec<Globs>,
    /// Compose service.
    pub service: Vec<Globs>,
    /// Compose project.
    pub project: Vec<Globs>,
    /// Image as it was asked for. A pattern without a tag means any.
    pub image: Vec<Globs>,
    /// Label.
    pub label: Vec<LabelRule>,
}

/// The user's choice of containers.
#[derive(Clone, Debug, Default)]
pub struct ContainerFilter {
    /// Each kind given must match, all of them the same container.
    pub include: ContainerRules,
    /// None may match.
    pub exclude: ContainerRules,
    /// Only containers that are labelled `mcpspy.enable=true`.
    pub opt_in: bool,
}

impl ContainerFilter {
    /// Whether only some containers are wanted: then nothing outside of containers is.
    pub fn is_active(&self) -> bool {
        self.opt_in || self.include.is_given()
    }

    /// Whether there are containers that it leaves out by anything but their own label.
    pub fn rules_out(&self) -> bool {
        self.is_active() || self.exclude.is_given()
    }

    /// Whether this container by itself is wanted.
    pub fn admits(&self, container: &ContainerInfo) -> bool {
        self.wants(container) && !self.refuses(container)
    }

    /// Like [`Self::admits`], but also of a container whose name and labels are not known yet where
    /// they may decide.
    pub fn may_admit(&self, container: &ContainerInfo) -> bool {
        let unnamed = container.name.is_none() && container.labels.is_empty();
        !self.refuses(container) && (unnamed || self.wants(container))
    }

    /// Whether something between these ends is to be shown.
    pub(super) fn keeps<'a>(&self, ends: impl Iterator<Item = &'a Endpoint> + Clone) -> bool {
        let mut containers = ends.clone().filter_map(|end| end.container.as_deref());
        if containers.any(|container| self.refuses(container)) {
            return false;
        }
        let mut containers = ends.filter_map(|end| end.container.as_deref());
        !self.is_active() || containers.any(|container| self.wants(container))
    }

    /// The patterns that match none of these containers, as options: `--service shop`.
    pub fn unmatched<'a>(&self, known: impl Iterator<Item = &'a ContainerInfo>) -> Vec<String> {
        let mut open = self.include.patterns();
        let mut opt_in = self.opt_in;
        for container in known {
            open.retain(|pattern| !pattern.matches(container));
            opt_in &= !is_enabled(container, "true");
        }
        let mut options: Vec<_> = open.iter().map(Pattern::option).collect();
        options.extend(opt_in.then(|| "--opt-in".to_owned()));
        options
    }

    /// The patterns to be matched that are no ids, as options: without an engine they match nothing.
    pub fn by_name(&self) -> Vec<String> {
        let patterns = self.include.patterns();
        let named = patterns.iter().filter(|pattern| !pattern.is_id());
        let mut options: Vec<_> = named.map(Pattern::option).collect();
        options.extend(self.opt_in.then(|| "--opt-in".to_owned()));
        options
    }

    fn wants(&self, container: &ContainerInfo) -> bool {
        (!self.opt_in || is_enabled(container, "true"))
            && self.include.each(container).into_iter().flatten().all(|matched| matched)
    }

    fn refuses(&self, container: &ContainerInfo) -> bool {
        is_enabled(container, "false")
            || self.exclude.each(container).into_iter().flatten().any(|matched| matched)
    }
}

fn is_enabled(container: &ContainerInfo, value: &str) -> bool {
    container.label(ENABLE).is_some_and(|said| said.trim().eq_ignore_ascii_case(value))
}

impl ContainerRules {
    fn is_given(&self) -> bool {
        let Self { container, service, project, image, label } = self;
        let globs = [container, service, project, image];
        globs.iter().any(|globs| !globs.is_empty()) || !label.is_empty()
    }

    /// One answer for each kind; `None` where nothing was asked.
    fn each(&self, container: &ContainerInfo) -> [Option<bool>; 5] {
        let asked = |globs: &[Globs], names: Names| {
            let any = |globs: &Globs| {
                let mut found = false;
                names(container, &mut |name| found = found || globs.set.is_match(name));
                found
            };
            (!globs.is_empty()).then(|| globs.iter().any(any))
        };
        let by_id = |globs: &Globs| globs.patterns.iter().any(|text| has_id(container, text));
        let named = asked(&self.container, names);
        [
            named.map(|found| found || self.container.iter().any(by_id)),
            asked(&self.service, service),
            asked(&self.project, project),
            asked(&self.image, images),
            (!self.label.is_empty()).then(|| self.label.iter().any(|rule| rule.matches(container))),
        ]
    }

    fn patterns(&self) -> Vec<Pattern<'_>> {
        let lists: [(&str, &[Globs], Names); 4] = [
            ("container", &self.container, names),
            ("service", &self.service, service),
            ("project", &self.project, project),
            ("image", &self.image, images),
        ];
        let globs = lists.into_iter().flat_map(|(option, list, names)| {
            list.iter().flat_map(move |globs| {
                let ids = option == "container";
                (0..globs.patterns.len()).map(move |at| Pattern::Glob {
                    option,
                    globs,
                    at,
                    names,
                    ids,
                })
            })
        });
        globs.chain(self.label.iter().map(Pattern::Label)).collect()
    }
}

/// Hands on what a container is called in one way or another.
type Names = fn(&ContainerInfo, &mut dyn FnMut(&str));

/// One pattern of the user, for itself.
enum Pattern<'a> {
    Glob { option: &'static str, globs: &'a Globs, at: usize, names: Names, ids: bool },
    Label(&'a LabelRule),
}

impl Pattern<'_> {
    fn matches(&self, container: &ContainerInfo) -> bool {
        match self {
            Self::Label(rule) => rule.matches(container),
            Self::Glob { globs, at, names, ids, .. } => {
                let mut found = *ids && has_id(container, &globs.patterns[*at]);
                names(container, &mut |name| found = found || globs.set.matches(name).contains(at));
                found
            }
        }
    }

    /// Whether it can be the beginning of an id.
    fn is_id(&self) -> bool {
        matches!(self, Self::Glob { globs, at, ids: true, .. } if is_id(&globs.patterns[*at]))
    }

    fn option(&self) -> String {
        match self {
            Self::Glob { option, globs, at, .. } => format!("--{option} {}", globs.patterns[*at]),
            Self::Label(rule) => format!("--label {}", rule.text),
        }
    }
}

fn is_id(text: &str) -> bool {
    text.len() >= SHORTEST_ID && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the text is the beginning of the id, or of that of the container around it.
fn has_id(container: &ContainerInfo, text: &str) -> bool {
    let begins = |id: &str| id.get(..text.len()).is_some_and(|id| id.eq_ignore_ascii_case(text));
    is_id(text)
        && [Some(&container.id), container.outer.as_ref()]
            .into_iter()
            .flatten()
            .any(|id| begins(&id.0))
}

/// What `--container` looks at. Where no engine told a name, the short id stands for it.
fn names(container: &ContainerInfo, each: &mut dyn FnMut(&str)) {
    each(container.name.as_deref().unwrap_or(container.id.short()));
    // In a container of another one, which has that one's name before its own id.
    if let Some((outer, _)) = container.name.as_deref().and_then(|name| name.split_once('/')) {
        each(outer);
    }
    if let Some(service) = &container.service {
        each(service);
        if let Some(project) = &container.project {
            each(&format!("{project}/{service}"));
        }
    }
}

fn service(container: &ContainerInfo, each: &mut dyn FnMut(&str)) {
    container.service.as_deref().into_iter().for_each(each);
}

fn project(container: &ContainerInfo, each: &mut dyn FnMut(&str)) {
    container.project.as_deref().into_iter().for_each(each);
}

/// The image as asked, with the tag that an engine adds, and without tag and digest.
fn images(container: &ContainerInfo, each: &mut dyn FnMut(&str)) {
    let Some(image) = container.image.as_deref() else { return };
    each(image);
    let (tagged, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    // A colon before the last slash belongs to the port of a registry.
    let start = tagged.rfind('/').map_or(0, |slash| slash + 1);
    match tagged[start..].find(':') {
        Some(colon) => {
            each(tagged);
            each(&tagged[..start + colon]);
        }
        None if digest => each(tagged),
        None => each(&format!("{tagged}:latest")),
    }
}

impl LabelRule {
    fn matches(&self, container: &ContainerInfo) -> bool {
        match (container.label(&self.name), &self.value) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(value), Some(globs)) => globs.set.is_match(value),
        }
    }
}

/// Reads `name` or `name=glob`. A comma in the glob separates alternatives.
impl FromStr for LabelRule {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.parse()?)),
            None => (text, None),
        };
        if name.trim().is_empty() {
            return Err(GlobError("a label is written NAME or NAME=GLOB".to_owned()));
        }
        Ok(Self { name: name.trim().to_owned(), value, text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{ContainerId, Quality};

    /// `name image project/service label=value …`, each `-` where it has none.
    fn container(text: &str) -> ContainerInfo {
        let mut words = text.split_whitespace();
        let mut word = || words.next().filter(|word| *word != "-");
        let id = ContainerId(format!("{:a<64}", word().expect("an id")).into());
        let mut info = ContainerInfo::unnamed(id, "docker".into(), None);
        info.name = word().map(Arc::from);
        info.image = word().map(Arc::from);
        if let Some((project, service)) = word().and_then(|word| word.split_once('/')) {
            info.project = Some(project.into());
            info.service = Some(service.into());
        }
        let label = |word: &str| {
            let (name, value) = word.split_once('=').expect("name=value");
            (Arc::from(name), Arc::from(value))
        };
        let mut labels: Vec<(Arc<str>, Arc<str>)> = words.map(label).collect();
        labels.sort();
        info.labels = labels.into();
        info
    }

    /// Options as on the command line, without the dashes.
    fn filter(options: &str) -> ContainerFilter {
        let mut filter = ContainerFilter::default();
        for option in options.split_whitespace() {
            if option == "opt-in" {
                filter.opt_in = true;
                continue;
            }
            let (name, value) = option.split_once('=').expect("name=value");
            let (rules, name) = match name.strip_prefix("exclude-") {
                Some(name) => (&mut filter.exclude, name),
                None => (&mut filter.include, name),
            };
            let globs = || value.parse::<Globs>().expect("a pattern");
            match name {
                "container" => rules.container.push(globs()),
                "service" => rules.service.push(globs()),
                "project" => rules.project.push(globs()),
                "image" => rules.image.push(globs()),
                "label" => rules.label.push(value.parse().expect("a label")),
                other => panic!("no option {other}"),
            }
        }
        filter
    }

    const INVENTORY: &str = "beef0123 shop_inventory_1 reg:5000/shop/inventory:1.2 shop/inventory \
                             team=blue mcpspy.enable=true";
    const PLAIN: &str = "cafe4567 srv weather - com.example.x=";
    const UNNAMED: &str = "0123abcd - - -";
    const PRIVATE: &str = "d00d8888 vault vault@sha256:00 shop/vault mcpspy.enable=False";

    #[test]
    fn each_option_admits_what_it_says() {
        // i inventory, p plain, u unnamed, v the one that does not want to be watched.
        let containers = [('i', INVENTORY), ('p', PLAIN), ('u', UNNAMED), ('v', PRIVATE)];
        let containers = containers.map(|(letter, text)| (letter, container(text)));
        for (options, expected) in [
            ("", "ipu"),
            ("container=shop_inventory_1", "i"),
            ("container=SRV", "p"),
            ("container=srv,shop_*", "ip"),
            ("container=inventory", "i"),
            ("container=shop/inventory", "i"),
            ("container=shop/*", "i"),
            ("container=inv*", "i"),
            ("container=*", "ipu"),
            ("container=shop", ""),
            ("container=beef", "i"),
            ("container=BEEF01", "i"),
            ("container=bee", ""),
            ("container=eef0", ""),
            ("container=0123abcdaaaa", "u"),
            ("container=0123a*", "u"),
            ("container=vault", ""),
            ("service=inventory", "i"),
            ("service=shop", ""),
            ("project=shop", "i"),
            ("project=s?op service=inv*", "i"),
            ("project=shop service=srv", ""),
            ("project=shop container=srv", ""),
            ("image=reg:5000/shop/inventory", "i"),
            ("image=reg:5000/shop/inventory:1.*", "i"),
            ("image=reg:5000/shop/inventory:2", ""),
            ("image=*/inventory", "i"),
            ("image=weather", "p"),
            ("image=weather:latest", "p"),
            ("image=weather:1", ""),
            ("label=team", "i"),
            ("label=team=b*", "i"),
            ("label=team=red,blue", "i"),
            ("label=team=red", ""),
            ("label=Team", ""),
            ("label=team=red label=com.example.x", "p"),
            ("opt-in", "i"),
            ("opt-in container=srv", ""),
            ("exclude-container=srv", "iu"),
            ("exclude-container=shop/*", "pu"),
            ("exclude-project=shop", "pu"),
            ("exclude-service=inventory exclude-image=weather", "u"),
            ("exclude-label=team=blue", "pu"),
            ("container=* exclude-container=0123", "ip"),
        ] {
            let filter = filter(options);
            let admitted = containers.iter().filter(|(_, container)| filter.admits(container));
            assert_eq!(
                admitted.map(|(letter, _)| letter).collect::<String>(),
                expected,
                "{options}"
            );
        }
    }

    #[test]
    fn one_wanted_end_is_enough_and_one_unwanted_end_too_many() {
        let end = |text: Option<&str>| Endpoint {
            process: None,
            container: text.map(|text| Arc::new(container(text))),
            quality: Quality::Exact,
        };
        let sessions = [
            ('o', None, None),
            ('i', None, Some(INVENTORY)),
            ('p', Some(PLAIN), None),
            ('b', Some(PLAIN), Some(INVENTORY)),
            ('v', None, Some(PRIVATE)),
            ('w', Some(PRIVATE), Some(INVENTORY)),
        ];
        for (options, expected) in [
            ("", "oipb"),
            ("container=srv", "pb"),
            ("container=inventory", "ib"),
            // Both kinds, but of two containers.
            ("project=shop image=weather", ""),
            ("opt-in", "ib"),
            ("exclude-container=srv", "oi"),
            ("container=inventory exclude-container=srv", "i"),
            ("container=vault", ""),
        ] {
            let filter = filter(options);
            let kept = sessions
                .iter()
                .filter(|(_, from, to)| filter.keeps([&end(*from), &end(*to)].into_iter()));
            assert_eq!(kept.map(|(letter, ..)| letter).collect::<String>(), expected, "{options}");
        }
    }

    #[test]
    fn what_is_not_named_yet_may_be_wanted() {
        let unnamed = container(UNNAMED);
        for (options, may) in [
            ("container=srv", true),
            ("opt-in", true),
            ("exclude-container=srv", true),
            ("container=srv exclude-container=0123", false),
        ] {
            assert_eq!(filter(options).may_admit(&unnamed), may, "{options}");
        }
        assert!(!filter("container=other").may_admit(&container(PLAIN)));
        assert!(!filter("container=vault").may_admit(&container(PRIVATE)));
    }

    #[test]
    fn a_container_in_a_container_goes_by_the_id_of_the_outer_one() {
        let mut inner = container(UNNAMED);
        inner.outer = Some(container(PLAIN).id);
        assert!(filter("container=cafe45").admits(&inner));
        assert!(!filter("container=beef01").admits(&inner));
    }

    #[test]
    fn patterns_that_match_nothing_are_told_each_for_itself() {
        let known = [container(INVENTORY), container(PLAIN)];
        let of = |options: &str| filter(options).unmatched(known.iter());
        assert_eq!(of("container=inventory,shp/* container=beef"), ["--container shp/*"]);
        assert_eq!(of("service=x project=shop image=y"), ["--service x", "--image y"]);
        assert_eq!(of("label=team=red label=team opt-in"), ["--label team=red"]);
        assert_eq!(filter("opt-in").unmatched([].into_iter()), ["--opt-in"]);
        assert!(of("exclude-container=nobody").is_empty());
    }

    #[test]
    fn without_an_engine_ids_are_all_that_can_match() {
        let of = |options: &str| filter(options).by_name();
        assert!(of("container=4f1c,4f1c2a9be07d exclude-service=x").is_empty());
        assert_eq!(of("container=4f1c,shop,abc"), ["--container shop", "--container abc"]);
        assert_eq!(
            of("service=beef label=team opt-in"),
            ["--service beef", "--label team", "--opt-in"]
        );
    }

    #[test]
    fn a_label_is_a_name_with_or_without_a_pattern() {
        for bad in ["", "=x", " =x", "x=", "x=[a"] {
            assert!(bad.parse::<LabelRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_rules_that_include_leave_the_rest_of_the_host_out() {
        for (options, active) in
            [("", false), ("exclude-project=x", false), ("opt-in", true), ("label=x", true)]
        {
            assert_eq!(filter(options).is_active(), active, "{options}");
        }
    }
}
