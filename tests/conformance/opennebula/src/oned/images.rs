//! Images and datastores (contract §5).

use super::{Oned, Reply, transfer};
use crate::drivers::Answer;
use crate::model::{Datastore, Image, ImageState, Next, Snapshots, StoreKind};
use crate::state::{Lcm, State};
use crate::template::{Template, Value};
use crate::xml::Element;

impl Oned {
    /// The message of a request about an image.
    pub(super) fn image_document(&self, image: Element, store: u32, more: Vec<Element>) -> String {
        let model = self.model();
        let images: Vec<u32> =
            model.images.values().filter(|i| i.store == store).map(|i| i.id).collect();
        // The image in question is not among them yet.
        let own = image.at("ID").and_then(|id| id.text().parse().ok());
        let others: Vec<u32> = images.into_iter().filter(|id| Some(*id) != own).collect();
        let store = model.stores[&store].document(&others);
        let parts = [vec![image, store], more].concat();
        Element::of("DS_DRIVER_ACTION_DATA", parts).write()
    }

    /// `oneimage create`.
    ///
    /// # Errors
    /// What oned would say at once; what goes wrong later is the image's state.
    pub fn create_image(&self, store: &str, text: &str) -> Reply {
        let mut given = Template::read(text);
        let word = |given: &mut Template, key: &str| match given.take(key).pop() {
            Some(Value::Text(text)) => text,
            _ => String::new(),
        };
        let path = word(&mut given, "PATH");
        let source = word(&mut given, "SOURCE");
        let (store_id, driver, name) = {
            let model = self.model();
            let store = model.store(store).ok_or(format!("no datastore {store}"))?;
            (store.id, store.ds_mad.clone(), store.name.clone())
        };
        let mut size = word(&mut given, "SIZE");
        if !path.is_empty() {
            size = self.image_size(&path, &size, given.text("TYPE"), (store_id, &driver))?;
        }
        let (name_of_image, kind) = (word(&mut given, "NAME"), word(&mut given, "TYPE"));
        let persistent = word(&mut given, "PERSISTENT") == "YES";
        let mut format = word(&mut given, "FORMAT");
        let kind = Image::kind_of(&kind);
        if format.is_empty() && path.is_empty() {
            format = "raw".to_owned();
        }
        let fs = word(&mut given, "FS");
        if matches!(kind, 0 | 2) && given.text("DEV_PREFIX").is_none() {
            given.set("DEV_PREFIX", "sd");
        }
        let now = self.model().now;
        let image = self.add_image(Image {
            id: 0,
            name: name_of_image,
            kind,
            persistent,
            source: source.clone(),
            path: path.clone(),
            format,
            fs,
            size,
            state: (ImageState::Locked, 0),
            cloning: -1,
            store: store_id,
            store_name: name,
            template: given,
            error: None,
            time: now,
            snapshots: Snapshots::default(),
            snapshot: None,
        });
        if !source.is_empty() {
            self.image_state(image, ImageState::Ready, None);
        } else if path.is_empty() {
            self.fill_image(image, "MKFS", &driver, "Error creating datablock");
        } else {
            self.fill_image(image, "CP", &driver, "Error copying image in the datastore");
        }
        Ok(format!("ID: {image}"))
    }

    /// The driver says how big it will be, while the user waits.
    fn image_size(
        &self,
        path: &str,
        size: &str,
        kind: Option<&str>,
        (store, driver): (u32, &str),
    ) -> Reply {
        let request = Next::take(&mut self.model().next.stat);
        let mut parts = vec![Element::plain("PATH", path)];
        // What is no disk has none.
        if matches!(Image::kind_of(kind.unwrap_or_default()), 0 | 2) {
            parts.push(Element::plain("SIZE", size));
        }
        let document = self.image_document(Element::of("IMAGE", parts), store, Vec::new());
        let refuse = |text: &str| format!("[one.image.allocate] {text}");
        match self.drivers.datastore("STAT", driver, request, &document) {
            Answer::Success(text) => {
                let cannot = || refuse(&format!("Cannot parse image SIZE: {text}"));
                let mb: u64 = text.parse().map_err(|_| cannot())?;
                if mb > self.model().stores[&store].space[1] {
                    return Err(refuse("Not enough space in datastore"));
                }
                Ok(text)
            }
            Answer::Failure(text) => Err(refuse(&format!("Cannot parse image SIZE: {text}"))),
            Answer::Cancelled => Err(refuse("cancelled")),
        }
    }

    pub(super) fn add_image(&self, mut image: Image) -> u32 {
        let mut model = self.model();
        image.id = Next::take(&mut model.next.image);
        let id = image.id;
        model.images.insert(id, image);
        id
    }

    fn image_state(&self, id: u32, state: ImageState, error: Option<String>) {
        if let Some(image) = self.model().images.get_mut(&id) {
            image.state = (state, image.state.0 as u8);
            image.error = error;
        }
    }

    /// The driver makes an image's content: `SOURCE FORMAT`, or only the first of a data block.
    fn fill_image(&self, id: u32, word: &str, driver: &str, failure: &str) {
        let (document, store) = {
            let image = self.model().images[&id].clone();
            (image.document(), image.store)
        };
        let document = self.image_document(document, store, Vec::new());
        let answer = self.drivers.datastore(word, driver, id, &document);
        let (state, error) = match &answer {
            Answer::Success(text) => self.with_image(id, |image| {
                let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
                let format = rest.split_whitespace().next().unwrap_or_default();
                if word == "MKFS" {
                    image.source = text.clone();
                } else {
                    image.source = first.to_owned();
                    if !format.is_empty() {
                        image.format = format.to_owned();
                    }
                }
                if word == "CP" && format.is_empty() {
                    let why = "CP operation succeeded but image FORMAT was not returned.";
                    return (ImageState::Error, Some(why.to_owned()));
                }
                (ImageState::Ready, None)
            }),
            Answer::Failure(text) => (ImageState::Error, Some(format!("{failure}: {text}"))),
            Answer::Cancelled => return,
        };
        self.image_state(id, state, error);
    }

    fn with_image<T>(&self, id: u32, change: impl FnOnce(&mut Image) -> T) -> T {
        change(self.model().images.get_mut(&id).expect("an image"))
    }

    /// `oneimage clone`.
    ///
    /// # Errors
    /// There is no such image or datastore.
    pub fn clone_image(&self, from: &str, name: &str, store: Option<&str>) -> Reply {
        let (old, driver) = {
            let model = self.model();
            let image = model.image(from).ok_or(format!("no image {from}"))?.clone();
            let store = match store {
                Some(store) => model.store(store).ok_or("no datastore")?.clone(),
                None => model.stores[&image.store].clone(),
            };
            let new = Image { store: store.id, store_name: store.name.clone(), ..image };
            (new, store.ds_mad)
        };
        let now = self.model().now;
        let id = self.add_image(Image {
            name: name.to_owned(),
            path: old.source.clone(),
            source: String::new(),
            cloning: i64::from(old.id),
            state: (ImageState::Locked, 0),
            error: None,
            persistent: false,
            time: now,
            snapshots: Snapshots::default(),
            ..old.clone()
        });
        self.fill_image(id, "CLONE", &driver, &format!("Error cloning from Image {}", old.id));
        Ok(format!("ID: {id}"))
    }

    /// `oneimage delete`.
    ///
    /// # Errors
    /// There is no such image.
    pub fn delete_image(&self, name: &str) -> Reply {
        let image = self.model().image(name).ok_or(format!("no image {name}"))?.clone();
        if !image.source.is_empty() {
            let driver = self.model().stores[&image.store].ds_mad.clone();
            let document = self.image_document(image.document(), image.store, Vec::new());
            let answer = self.drivers.datastore("RM", &driver, image.id, &document);
            if !matches!(answer, Answer::Success(_)) {
                let why = "Error removing image from datastore. Retry the operation or manually remove \
                           image source  and run the delete --force operation to completely delete the image";
                self.image_state(image.id, ImageState::Error, Some(why.to_owned()));
                return Ok(String::new());
            }
        }
        let mut model = self.model();
        model.images.remove(&image.id);
        model.vms.values_mut().for_each(|vm| vm.backups.retain(|backup| *backup != image.id));
        Ok(String::new())
    }

    /// `onevm disk-saveas`: a new image, and the disk copied into it, or a snapshot of it.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn save_disk(&self, id: u32, disk: &str, name: &str, snapshot: &str) -> Reply {
        let (found, state) = {
            let model = self.model();
            let vm = model.vms.get(&id).ok_or("no VM")?;
            (vm.disk(disk).cloned().ok_or("no such disk")?, vm.state)
        };
        let old: u32 =
            found.get("IMAGE_ID").and_then(|i| i.parse().ok()).ok_or("a volatile disk")?;
        let (old, driver) = {
            let model = self.model();
            let image = model.images[&old].clone();
            let driver = model.stores[&image.store].ds_mad.clone();
            (image, driver)
        };
        let mut template = old.template.clone();
        template.set("SAVED_DISK_ID", disk);
        template.set("SAVED_IMAGE_ID", old.id);
        template.set("SAVED_VM_ID", id);
        template.set("SAVE_AS_HOT", "YES");
        let image = self.add_image(Image {
            name: name.to_owned(),
            path: String::new(),
            source: String::new(),
            format: "save_as".to_owned(),
            size: found["SIZE"].clone(),
            state: (ImageState::Locked, 0),
            persistent: false,
            template,
            snapshots: Snapshots::default(),
            ..old
        });
        self.fill_image(image, "MKFS", &driver, "Error creating datablock");
        let source = self.model().images[&image].source.clone();
        let (lines, seq) = {
            let model = self.model();
            let vm = &model.vms[&id];
            let machine = Self::machine_of(vm);
            let what = (source.as_str(), snapshot);
            (vec![transfer::copy_out(&model, vm, &found, &machine, what)], vm.place().seq)
        };
        let busy = match state {
            State::Poweroff => Lcm::HotplugSaveasPoweroff,
            State::Suspended => Lcm::HotplugSaveasSuspended,
            State::Undeployed => Lcm::HotplugSaveasUndeployed,
            State::Stopped => Lcm::HotplugSaveasStopped,
            _ => Lcm::HotplugSaveas,
        };
        self.with(id, |vm, _| vm.go(State::Active, busy));
        let answer = self.transfer_file(id, seq, "disk_saveas", &lines);
        self.rest_in(id, state, "", &answer);
        let done = matches!(answer, Answer::Success(_));
        let state = if done { ImageState::Ready } else { ImageState::Error };
        self.image_state(image, state, None);
        Ok(format!("Image ID: {image}"))
    }

    /// `onedatastore create`.
    ///
    /// # Errors
    /// None.
    pub fn create_store(&self, text: &str) -> Reply {
        let id = {
            let mut model = self.model();
            let id = Next::take(&mut model.next.store);
            let store = Datastore::of(id, text, &model);
            model.stores.insert(id, store);
            id
        };
        self.monitor_store(id);
        Ok(format!("ID: {id}"))
    }

    /// Asks a datastore's driver for its space; that of a system datastore which is not on all hosts is known to
    /// hosts alone.
    pub fn monitor_store(&self, id: u32) {
        let store = self.model().stores[&id].clone();
        let images: Vec<u32> = {
            let model = self.model();
            model.images.values().filter(|image| image.store == id).map(|image| image.id).collect()
        };
        let (kind, driver) = match store.kind {
            StoreKind::System if store.is_shared() => ("tm", &store.tm_mad),
            StoreKind::System => return,
            _ => ("datastore", &store.ds_mad),
        };
        let location = Element::quoted("DATASTORE_LOCATION", &self.model().location);
        let document =
            Element::of("DS_DRIVER_ACTION_DATA", vec![store.document(&images), location]).write();
        if let Answer::Success(text) = self.drivers.monitor_datastore(kind, driver, id, &document) {
            let told = Template::read(&text);
            let number = |key: &str| told.text(key).and_then(|n| n.parse().ok()).unwrap_or(0);
            let space = [number("TOTAL_MB"), number("FREE_MB"), number("USED_MB")];
            if let Some(store) = self.model().stores.get_mut(&id) {
                store.space = space;
            }
        }
    }
}
