/* Plans and segments the demo scan: segment MODEL VOXELS LABELS, where VOXELS are 45x50x36 floats;
   writes the labels as 16-bit numbers. Fails where organum's C interface does not do what it
   says. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "organum.h"

enum { D = 45, H = 50, W = 36, VOXELS = D * H * W };

#define NEED(what)                                                              \
    do {                                                                        \
        if (!(what)) {                                                          \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #what); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

struct seen {
    uint64_t calls, done, total, most;
};

static bool tell(uint64_t done, uint64_t total, void *user) {
    struct seen *seen = user;
    seen->calls += 1;
    seen->done = done;
    seen->total = total;
    return seen->calls < seen->most;
}

/* Frees an error after its kind and text were looked at. */
static void need_kind(organum_error *error, const char *kind) {
    NEED(error != NULL);
    if (strcmp(organum_error_kind(error), kind) != 0) {
        const char *found = organum_error_kind(error);
        fprintf(stderr, "%s, not %s: %s\n", found, kind, organum_error_message(error));
        exit(1);
    }
    NEED(strlen(organum_error_message(error)) > 5);
    organum_error_free(error);
}

int main(int argc, char **argv) {
    NEED(argc == 4);
    NEED(strlen(organum_version()) >= 5);
    organum_model *model = NULL;
    organum_error *error = NULL;
    NEED(organum_open("no such model", &model, &error) == ORGANUM_MODEL && model == NULL);
    need_kind(error, "load.not_found");
    NEED(organum_open(NULL, &model, NULL) == ORGANUM_OPTION);
    NEED(organum_open("\xff", &model, NULL) == ORGANUM_OPTION);
    NEED(organum_open(argv[1], &model, &error) == ORGANUM_OK);
    NEED(organum_model_channels(model) == 1);

    const uint32_t extent[3] = {48, 56, 40}, odd[3] = {D, H, W};
    organum_plan plan;
    NEED(organum_plan_run(model, extent, 0, &plan, &error) == ORGANUM_OK);
    NEED(plan.extent[0] == 48 && plan.passes == 1 && plan.flops > 0);
    NEED(plan.peak_bytes >= plan.smallest_budget && plan.smallest_budget > 0);
    NEED(plan.weights_bytes > 0);
    NEED(organum_plan_run(model, extent, 1000, &plan, &error) == ORGANUM_MEMORY);
    NEED(organum_error_smallest_budget(error) == plan.smallest_budget);
    need_kind(error, "plan.budget");
    NEED(organum_plan_run(model, odd, 0, &plan, &error) == ORGANUM_VOLUME);
    need_kind(error, "plan.extent");

    float *voxels = malloc(VOXELS * sizeof *voxels);
    FILE *file = fopen(argv[2], "rb");
    NEED(voxels != NULL && file != NULL && fread(voxels, sizeof *voxels, VOXELS, file) == VOXELS);
    fclose(file);
    organum_volume volume = {
        .channels = 1,
        .extent = {D, H, W},
        .affine = {{1, 0, 0, -16}, {0, 1, 0, -20}, {0, 0, 1, -18}},
        .voxels = voxels,
    };
    struct seen seen = {.most = UINT64_MAX};
    organum_options options = {.device = "cpu", .progress = tell, .user = &seen};
    organum_labels *labels = NULL;
    NEED(organum_segment(model, &volume, &options, &labels, &error) == ORGANUM_OK);
    /* it takes several batches, so that it can be stopped after the first */
    NEED(seen.calls > 2 && seen.done == seen.total && seen.total > 0);
    uint32_t shape[4];
    organum_labels_shape(labels, shape);
    NEED(shape[0] == 1 && shape[1] == D && shape[2] == H && shape[3] == W);
    const uint16_t *found = organum_labels_voxels(labels);
    NEED(organum_labels_classes(labels) == 2);
    for (size_t i = 0; i < 2; i++) {
        organum_label label;
        NEED(organum_labels_class(labels, i, &label) && label.number == i + 1);
        uint64_t count = 0;
        for (size_t v = 0; v < VOXELS; v++) count += found[v] == label.number;
        NEED(count == label.voxels && strlen(label.name) > 0);
        const double ml = 0.001 * (double)count;
        NEED(count > 0 && label.ml > ml - 1e-9 && label.ml < ml + 1e-9);
    }
    NEED(!organum_labels_class(labels, 2, NULL));
    const size_t warnings = organum_labels_warnings(labels);
    for (size_t i = 0; i < warnings; i++) printf("warning: %s\n", organum_labels_warning(labels, i));
    NEED(organum_labels_warning(labels, warnings) == NULL);
    file = fopen(argv[3], "wb");
    NEED(file != NULL && fwrite(found, sizeof *found, VOXELS, file) == VOXELS && fclose(file) == 0);
    organum_labels_free(labels);
    labels = NULL;

    seen = (struct seen){.most = 1};
    NEED(organum_segment(model, &volume, &options, &labels, &error) == ORGANUM_CANCELLED);
    NEED(labels == NULL);
    need_kind(error, "run.cancelled");
    options = (organum_options){.device = "no such adapter"};
    NEED(organum_segment(model, &volume, &options, &labels, &error) == ORGANUM_DEVICE);
    need_kind(error, "engine.no_adapter");
    options = (organum_options){.device = "cpu", .memory = 1000};
    NEED(organum_segment(model, &volume, &options, &labels, &error) == ORGANUM_MEMORY);
    need_kind(error, "plan.budget");
    volume.channels = 3;
    volume.extent[0] = D / 3;
    NEED(organum_segment(model, &volume, NULL, &labels, &error) == ORGANUM_VOLUME);
    organum_error_free(error);
    volume.extent[0] = volume.extent[1] = volume.extent[2] = UINT32_MAX;
    NEED(organum_segment(model, &volume, NULL, &labels, &error) == ORGANUM_OPTION);
    organum_error_free(error);
    volume.voxels = NULL;
    NEED(organum_segment(model, &volume, NULL, &labels, NULL) == ORGANUM_OPTION);

    volume = (organum_volume){.channels = 1, .extent = {D, H, W}, .voxels = voxels};
    NEED(organum_segment(model, &volume, NULL, &labels, &error) == ORGANUM_VOLUME);
    need_kind(error, "volume.format");
    const char *none = "no such scan.nii";
    NEED(organum_segment_file(model, none, "l.nii.gz", NULL, NULL, &error) == ORGANUM_VOLUME);
    need_kind(error, "volume.not_found");
    NEED(organum_segment_file(model, argv[2], "l.nii.gz", NULL, NULL, NULL) == ORGANUM_VOLUME);

    free(voxels);
    organum_model_free(model);
    organum_model_free(NULL);
    organum_labels_free(NULL);
    organum_error_free(NULL);
    puts("done");
    return 0;
}
