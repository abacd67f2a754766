#ifndef ORGANUM_H
#define ORGANUM_H

/* Made of capi/src by cbindgen: ORGANUM_BLESS=1 cargo run --manifest-path capi/header/Cargo.toml */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The end of a call; the numbers are the exit codes of the command line.
typedef enum organum_status {
  // Done.
  ORGANUM_OK = 0,
  // A failure that should not happen.
  ORGANUM_INTERNAL = 1,
  // An argument or option that cannot be used.
  ORGANUM_OPTION = 2,
  // The volume does not suit the model.
  ORGANUM_VOLUME = 3,
  // The model is missing, damaged, or one that organum does not run.
  ORGANUM_MODEL = 4,
  // It does not fit the budget; the error names the smallest that works.
  ORGANUM_MEMORY = 5,
  // There is no such device, or it failed.
  ORGANUM_DEVICE = 6,
  // The progress callback stopped the run. The model can be used again.
  ORGANUM_CANCELLED = 130,
} organum_status;

// A failure: its text, kind and smallest budget.
typedef struct organum_error organum_error;

// The labels of a volume, with names and sizes of the classes.
typedef struct organum_labels organum_labels;

// A model. It may go from thread to thread, but only one may use it at a time.
typedef struct organum_model organum_model;

// A class of a segmented volume.
typedef struct organum_label {
  // Its number in the voxels; of masks that may overlap, that of its channel.
  uint32_t number;
  // Its name in UTF-8, which lives as long as the labels.
  const char *name;
  // Its voxels.
  uint64_t voxels;
  // Its volume in millilitres.
  double ml;
} organum_label;

// Memory and work of a run; of one window where the model runs in windows.
typedef struct organum_plan {
  // The voxels along D, H, W that the network runs on.
  uint32_t extent[3];
  // Every byte on the device: weights, activations, uniforms, staging.
  uint64_t peak_bytes;
  // Bytes of weights.
  uint64_t weights_bytes;
  // The smallest budget that works.
  uint64_t smallest_budget;
  // Floating-point operations of one run of the network.
  uint64_t flops;
  // Runs of the network: windows times mirror images, or 1.
  uint64_t passes;
} organum_plan;

// A volume of the caller's.
typedef struct organum_volume {
  // The number of channels C.
  uint32_t channels;
  // The voxels along D, H, W.
  uint32_t extent[3];
  // The rows of the map from the indices along W, H, D, and 1, to millimetres to the right, the
  // front and the head: the first three rows of a NIfTI affine, if W is the file's first axis.
  double affine[3][4];
  // The values in C order: channels, D, H, W.
  const float *voxels;
} organum_volume;

// Options of a segmentation. All zeros is a good choice.
typedef struct organum_options {
  // An index or part of a name of `organum devices`, "gpu", "cpu" or "reference"; null for a
  // hardware GPU if there is one, else the host.
  const char *device;
  // The most bytes on the device; 0 for no bound.
  uint64_t memory;
  // The most bytes of host memory; 0 for no bound.
  uint64_t host_memory;
  // True for activations and weights in 16-bit floats.
  bool half_precision;
  // True to leave mirror images of windows out.
  bool no_mirror;
  // Called with operations done and operations of the run, on the calling thread; false stops
  // the run. May be null. It must return: no longjmp, no exception.
  bool (*progress)(uint64_t done, uint64_t total, void *user);
  // Given to the callback.
  void *user;
} organum_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of organum.
const char *organum_version(void);

// The text of an error, UTF-8 on one line; it lives as long as the error.
//
// # Safety
// `error` is one that a function gave.
const char *organum_error_message(const struct organum_error *error);

// The stage and kind of an error in snake case, such as `plan.budget`; it lives as long as the
// error.
//
// # Safety
// `error` is one that a function gave.
const char *organum_error_kind(const struct organum_error *error);

// The smallest budget in bytes that works, for the kinds `plan.budget` and `plan.host_budget`,
// else 0.
//
// # Safety
// `error` is one that a function gave.
uint64_t organum_error_smallest_budget(const struct organum_error *error);

// Frees an error; null is left alone.
//
// # Safety
// `error` is null or one that a function gave, and is not used again.
void organum_error_free(struct organum_error *error);

// The label of each voxel, C order; it lives as long as the labels.
//
// # Safety
// `labels` are those that a function gave.
const uint16_t *organum_labels_voxels(const struct organum_labels *labels);

// Channels C, D, H, W of the voxels. C is 1; where labels may overlap there is a mask of each
// class.
//
// # Safety
// `labels` are those that a function gave; `shape` has room for four numbers.
void organum_labels_shape(const struct organum_labels *labels, uint32_t *shape);

// The number of classes but the background.
//
// # Safety
// `labels` are those that a function gave.
size_t organum_labels_classes(const struct organum_labels *labels);

// The class at an index below [`organum_labels_classes`]; false, and nothing is written, where
// there is none.
//
// # Safety
// `labels` are those that a function gave; `label` has room.
bool organum_labels_class(const struct organum_labels *labels,
                          size_t index,
                          struct organum_label *label);

// The number of warnings of model, volume and labels.
//
// # Safety
// `labels` are those that a function gave.
size_t organum_labels_warnings(const struct organum_labels *labels);

// The text of the warning at an index, or null where there is none; it lives as long as the
// labels.
//
// # Safety
// `labels` are those that a function gave.
const char *organum_labels_warning(const struct organum_labels *labels, size_t index);

// Frees labels; null is left alone.
//
// # Safety
// `labels` are null or those that a function gave, and are not used again.
void organum_labels_free(struct organum_labels *labels);

// Opens a model file, a PyTorch checkpoint, an nnU-Net folder or a MONAI bundle, whose path is
// UTF-8. No code of a file is run.
//
// # Safety
// `path` is a text; `model` has room for a pointer; `error` is null or has room for one.
enum organum_status organum_open(const char *path,
                                 struct organum_model **model,
                                 struct organum_error **error);

// The number of channels that a volume must have.
//
// # Safety
// `model` is one that was opened.
uint32_t organum_model_channels(const struct organum_model *model);

// Frees a model, and what it holds of the device; null is left alone.
//
// # Safety
// `model` is null or one that was opened, and is not used again.
void organum_model_free(struct organum_model *model);

// Plans a run over `extent` voxels along D, H, W, as the network is given them, within `memory`
// bytes of a device with the limits that every WebGPU device has; 0 for no bound. No device is
// opened.
//
// # Safety
// `model` is one that was opened; `extent` are three numbers; `plan` has room; `error` is null or
// has room for a pointer.
enum organum_status organum_plan_run(const struct organum_model *model,
                                     const uint32_t *extent,
                                     uint64_t memory,
                                     struct organum_plan *plan,
                                     struct organum_error **error);

// Segments a volume; the labels lie on its grid. The session stays open for the next volume of the
// same extent, until the model is freed or another device is asked for.
//
// # Safety
// `model` is one that was opened; `volume` and what it names are there; `options` is null or its
// texts and callback are there; `labels` has room for a pointer; `error` is null or has room for
// one.
enum organum_status organum_segment(struct organum_model *model,
                                    const struct organum_volume *volume,
                                    const struct organum_options *options,
                                    struct organum_labels **labels,
                                    struct organum_error **error);

// Segments the scan in a file (NIfTI, NRRD, MetaImage, MGH, a DICOM folder) and writes the labels
// to `output`, on the scan's grid and with their names: `.nii`, `.nii.gz`, `.nrrd`, `.seg.nrrd`,
// `.mha`; `.dcm` where the scan is DICOM. The file appears whole or not at all. Gives the labels,
// too, unless `labels` is null.
//
// # Safety
// `model` is one that was opened; `scan` and `output` are texts; `options` is null or its texts
// and callback are there; `labels` and `error` are null or have room for a pointer.
enum organum_status organum_segment_file(struct organum_model *model,
                                         const char *scan,
                                         const char *output,
                                         const struct organum_options *options,
                                         struct organum_labels **labels,
                                         struct organum_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ORGANUM_H */
