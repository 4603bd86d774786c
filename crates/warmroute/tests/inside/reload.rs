//! A changed configuration is swapped in whole, a bad one is refused, and what is known and in flight survives.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use warmroute::profile::read_config;
use warmroute::reload::{ConfigWatch, ReloadStatus};
use warmroute_ext_proc::EndpointPicker;

use crate::fixture::{ACTIVE_REQUESTS, Fixture, PREFIX_ONLY, completion, options, registry};

fn watch(fixture: &Fixture, path: &Path) -> (ConfigWatch, Arc<parking_lot::Mutex<ReloadStatus>>) {
    let status: Arc<parking_lot::Mutex<ReloadStatus>> = Arc::default();
    let watch = ConfigWatch {
        path: path.to_owned(),
        registry: Arc::new(registry()),
        decider: fixture.decider.clone(),
        tasks: fixture.tasks.clone(),
        metrics: fixture.metrics.clone(),
        status: status.clone(),
    };
    (watch, status)
}

#[tokio::test]
async fn a_good_change_is_taken_and_a_bad_one_refused() {
    let mut fixture = Fixture::new(PREFIX_ONLY, 3);
    let prompt: Vec<u32> = (0..100).collect();
    fixture.announce(1, &prompt[..64]);
    let running_request = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(running_request.destinations, [fixture.address(1)]);
    let (watch, status) = watch(&fixture, Path::new("config.yaml"));
    let mut running = read_config(&options(PREFIX_ONLY), &watch.registry).unwrap();

    watch.change(&mut running, ACTIVE_REQUESTS.as_bytes());
    assert_eq!(*status.lock(), ReloadStatus { taken: 1, refused: 0, refusal: None });
    let by_load = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_ne!(by_load.destinations, [fixture.address(1)], "the running request still counts as load");
    assert_eq!(fixture.receipts.find("last").unwrap().prompt_blocks, 0, "nobody asks for matches now");

    watch.change(
        &mut running,
        b"apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: queu-scorer\n",
    );
    let refusal = status.lock().refusal.clone().unwrap();
    assert!(refusal.contains("config.yaml:4:") && refusal.contains("queue-scorer"), "{refusal}");
    assert!(fixture.decider.policy().summary.contains("active-request-scorer"), "the last good one stays");

    watch.change(&mut running, PREFIX_ONLY.as_bytes());
    assert!(status.lock().refusal.as_deref().unwrap().contains("restart"), "engines aren't followed now");
    drop((running_request, by_load));
    fixture.assert_nothing_in_flight();
    fixture.remove(1);
}

#[tokio::test]
async fn the_index_survives_a_change_of_weights() {
    let fixture = Fixture::new(PREFIX_ONLY, 3);
    let prompt: Vec<u32> = (0..100).collect();
    fixture.announce(2, &prompt[..64]);
    let (watch, status) = watch(&fixture, Path::new("config.yaml"));
    let mut running = read_config(&options(PREFIX_ONLY), &watch.registry).unwrap();
    let heavier = PREFIX_ONLY
        .replace("pluginRef: prefix-cache-scorer", "pluginRef: prefix-cache-scorer\n    weight: 5");
    watch.change(&mut running, heavier.as_bytes());
    assert_eq!(status.lock().taken, 1);
    let picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(2)]);
    assert_eq!(fixture.receipts.find("last").unwrap().candidates[0].scores[0].weight, 5.0);
}

#[tokio::test]
async fn what_is_read_of_engines_stays_until_a_restart_but_its_name_may_change() {
    let fixture = Fixture::new(ACTIVE_REQUESTS, 1);
    let (watch, status) = watch(&fixture, Path::new("config.yaml"));
    let mut running = read_config(&options(ACTIVE_REQUESTS), &watch.registry).unwrap();
    let with = |plugin: &str| {
        ACTIVE_REQUESTS.replace("plugins:\n- type: active", &format!("plugins:\n{plugin}\n- type: active"))
    };
    for (plugin, part) in [
        ("- {type: core-metrics-extractor, parameters: {defaultEngine: sglang}}", "core-metrics-extractor"),
        ("- {type: metrics-data-source, parameters: {scheme: https}}", "metrics-data-source"),
    ] {
        watch.change(&mut running, with(plugin).as_bytes());
        let refusal = status.lock().refusal.clone().unwrap();
        assert!(refusal.contains(part) && refusal.contains("restart"), "{refusal}");
    }
    watch.change(&mut running, with("- {type: core-metrics-extractor, name: other}").as_bytes());
    let status = status.lock().clone();
    assert_eq!((status.taken, status.refused, status.refusal), (1, 2, None));
}

/// A ConfigMap is updated by swapping a symbolic link, under which the file's own name never changes.
#[tokio::test]
async fn a_swapped_link_is_a_change_and_requests_go_on_throughout() {
    let folder = tempfile::tempdir().unwrap();
    let versions = [ACTIVE_REQUESTS.to_owned(), ACTIVE_REQUESTS.replace("name: default", "name: second")];
    for (at, text) in versions.iter().enumerate() {
        std::fs::create_dir(folder.path().join(format!("v{at}"))).unwrap();
        std::fs::write(folder.path().join(format!("v{at}/config.yaml")), text).unwrap();
    }
    let link = folder.path().join("data");
    std::os::unix::fs::symlink("v0", &link).unwrap();
    let fixture = Fixture::new(ACTIVE_REQUESTS, 2);
    let (watch, status) = watch(&fixture, &link.join("config.yaml"));
    let running = read_config(&options(ACTIVE_REQUESTS), &watch.registry).unwrap();
    fixture.tasks.spawn("config watch", watch.run(running, versions[0].clone().into_bytes()));
    let next = folder.path().join("next");
    std::os::unix::fs::symlink("v1", &next).unwrap();
    std::fs::rename(&next, &link).unwrap();
    let swapped = async {
        while status.lock().taken == 0 {
            let picked = fixture.picker.pick(completion(&[1; 40])).await.unwrap();
            assert_eq!(picked.destinations.len(), 1);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), swapped).await.unwrap();
    fixture.picker.pick(completion(&[1; 40])).await.unwrap();
    assert_eq!(&*fixture.receipts.find("last").unwrap().profile, "second");
    fixture.assert_nothing_in_flight();
}
