"""Writes tests/vectors/formats.json: small scans in every format that organum reads, as hex, and what SimpleITK,
nibabel or pydicom say of them. Needs SimpleITK 2.5, nibabel 5.4, pydicom 3.0, pylibjpeg-openjpeg.

    python tests/make_formats.py
"""
import gzip, io, itertools, json, os, tempfile, zipfile, zlib
import numpy as np, nibabel as nib, SimpleITK as sitk, pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless,
                         JPEG2000Lossless, DeflatedExplicitVRLittleEndian, JPEGLSLossless, generate_uid)

rng = np.random.default_rng(16)
cases = []
LPS = np.diag([-1.0, -1.0, 1.0])


def of_folder(folder):
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            found[os.path.relpath(path, folder)] = open(path, "rb").read().hex()
    return found


def of_itk(path):
    """What SimpleITK reads, in organum's order: values [C][k][j][i], steps along k, j, i and origin in RAS."""
    image = sitk.ReadImage(path)
    return of_image(image)


def of_image(image):
    array = sitk.GetArrayFromImage(image).astype(np.float64)
    rank = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    matrix, origin = np.eye(3), np.zeros(3)
    d = np.array(image.GetDirection()).reshape(rank, rank)
    used = min(rank, 3)
    matrix[:used, :used] = (d * np.array(image.GetSpacing()))[:used, :used]
    origin[:used] = np.array(image.GetOrigin())[:used]
    spacing = list(image.GetSpacing())[:used]
    if rank == 2:
        n = np.cross(matrix[:, 0], matrix[:, 1])
        matrix[:, 2] = n / np.linalg.norm(n)
        spacing.append(1.0)
    matrix, origin = LPS @ matrix, LPS @ origin
    return dict(values=array.ravel().tolist(), steps=matrix.T[::-1].tolist(), origin=origin.tolist(), spacing=spacing[::-1])


def of_nibabel(path):
    image = nib.load(path)
    array = np.asarray(image.dataobj, np.float64)
    matrix = image.affine
    spacing = np.sqrt((matrix[:3, :3] ** 2).sum(0))
    return dict(values=array.T.ravel().tolist(), steps=matrix[:3, :3].T[::-1].tolist(), origin=matrix[:3, 3].tolist(), spacing=spacing[::-1].tolist())


def case(name, main, folder, expected=None, error=None, warning=None):
    cases.append(dict(name=name, main=main, files=of_folder(folder), expected=expected, error=error, warning=warning))


def oriented(number, dtype, size=(4, 3, 2)):
    """An image in one of 48 orientations, and a little oblique."""
    order = list(itertools.permutations(range(3)))[number % 6]
    signs = [1 if number // 6 >> axis & 1 else -1 for axis in range(3)]
    matrix = np.zeros((3, 3))
    for axis in range(3):
        matrix[order[axis], axis] = signs[axis]
    a = 0.1
    matrix = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ matrix
    array = rng.integers(-100, 100, size[::-1]) if np.dtype(dtype).kind != "u" else rng.integers(0, 200, size[::-1])
    image = sitk.GetImageFromArray(array.astype(dtype))
    image.SetSpacing([0.7, 1.3, 2.9])
    image.SetOrigin([-12.25, 33.1, 101.7])
    image.SetDirection(matrix.ravel())
    return image


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]

# every permutation and flip by ITK's own writers, compressed and not, in all types
for number in range(48):
    ending = [".nrrd", ".mha", ".nii.gz", ".mhd", ".nhdr"][number % 5]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"scan{ending}")
        image = oriented(number, DTYPES[number % 8])
        sitk.WriteImage(image, path, useCompression=number % 2 == 0)
        expected = of_nibabel(path) if ending == ".nii.gz" else of_itk(path)
        case(f"orientation {number} {ending}", f"scan{ending}", folder, expected)

# channels side by side, behind each other, and images of two dimensions
for ending in [".nrrd", ".mha"]:
    with tempfile.TemporaryDirectory() as folder:
        parts = [oriented(11, "int16") for _ in range(3)]
        path = os.path.join(folder, f"vector{ending}")
        sitk.WriteImage(sitk.Compose(parts), path)
        case(f"vectors {ending}", f"vector{ending}", folder, of_itk(path))
    with tempfile.TemporaryDirectory() as folder:
        image = sitk.GetImageFromArray(rng.integers(0, 99, (3, 2, 3, 4)).astype("int16"), isVector=False)
        image.SetSpacing([0.7, 1.3, 2.9, 1.0])
        path = os.path.join(folder, f"four{ending}")
        sitk.WriteImage(image, path)
        case(f"four dimensions {ending}", f"four{ending}", folder, of_itk(path))
    with tempfile.TemporaryDirectory() as folder:
        image = sitk.GetImageFromArray(rng.integers(0, 99, (3, 4)).astype("uint8"))
        image.SetSpacing([0.7, 1.3])
        image.SetOrigin([5.0, -6.0])
        path = os.path.join(folder, f"flat{ending}")
        sitk.WriteImage(image, path)
        case(f"two dimensions {ending}", f"flat{ending}", folder, of_itk(path))

# headers by hand
VOXELS = rng.integers(0, 250, (2, 3, 4))


def by_hand(name, main, parts, reader=of_itk, **more):
    with tempfile.TemporaryDirectory() as folder:
        for file, data in parts.items():
            open(os.path.join(folder, file), "wb").write(data)
        try:
            expected = None if "error" in more else reader(os.path.join(folder, main))
        except RuntimeError as e:
            raise SystemExit(f"{name}: {e}")
        case(name, main, folder, expected, **more)


def nrrd(fields, data=b"", magic="NRRD0005"):
    return (magic + "\n# by hand\nsome key:=a value: odd\n" + "".join(f"{k}: {v}\n" for k, v in fields.items()) + "\n").encode() + data


BASE = {"type": "short", "dimension": 3, "sizes": "4 3 2", "encoding": "raw", "endian": "little"}
SPACE = {"space": "left-posterior-superior", "space directions": "(0.7,0,0) (0,-1.3,0) (0,0,2.9)", "space origin": "(1,2,3)"}
little, big = VOXELS.astype("<i2").tobytes(), VOXELS.astype(">i2").tobytes()
by_hand("nrrd big endian", "a.nrrd", {"a.nrrd": nrrd({**BASE, **SPACE, "endian": "big"}, big)})
by_hand("nrrd RAS", "a.nrrd", {"a.nrrd": nrrd({**BASE, **SPACE, "space": "right-anterior-superior"}, little)})
by_hand("nrrd sheared", "a.nrrd", {"a.nrrd": nrrd({**BASE, **SPACE, "space directions": "(0.7,0,0) (0,-1.3,0) (0,0.4,2.9)"}, little)}, warning="is sheared",
        reader=lambda path: {**of_itk(path), "values": VOXELS.ravel().tolist()})
by_hand("nrrd LAS", "a.nrrd", {"a.nrrd": nrrd({**BASE, **SPACE, "space": "LAS"}, little)})
by_hand("nrrd spacings alone", "a.nrrd", {"a.nrrd": nrrd({**BASE, "spacings": "0.7 1.3 2.9"}, little)}, warning="says nothing of its orientation")
by_hand("nrrd text", "a.nrrd", {"a.nrrd": nrrd({**BASE, **SPACE, "encoding": "ascii"}, " ".join(map(str, VOXELS.ravel())).encode())})
by_hand("nrrd gzip members", "a.nrrd", {"a.nrrd": nrrd({**BASE, **SPACE, "encoding": "gz"}, gzip.compress(little))})
by_hand("nrrd detached with skips", "a.nhdr", {
    "a.nhdr": nrrd({**BASE, **SPACE, "line skip": 2, "byte skip": 3, "data file": "a.raw"}), "a.raw": b"one\ntwo\nxyz" + little})
by_hand("nrrd byte skip of -1", "a.nhdr", {"a.nhdr": nrrd({**BASE, **SPACE, "byteskip": -1, "datafile": "a.raw"}), "a.raw": b"header" + little})
by_hand("nrrd pattern", "a.nhdr", {
    "a.nhdr": nrrd({**BASE, **SPACE, "data file": "z%02d.raw 1 2 1"}), "z01.raw": little[:24], "z02.raw": little[24:]})
by_hand("nrrd list", "a.nhdr", {
    "a.nhdr": nrrd({**BASE, **SPACE, "data file": "LIST"})[:-1] + b"p.raw\nq.raw\n", "p.raw": little[:24], "q.raw": little[24:]})
by_hand("nrrd 64 bits", "a.nrrd", {"a.nrrd": nrrd({**BASE, **SPACE, "type": "long long int"}, VOXELS.astype("<i8").tobytes())})
META = {"ObjectType": "Image", "NDims": 3, "BinaryData": "True", "BinaryDataByteOrderMSB": "False", "CompressedData": "False",
        "TransformMatrix": "0 1 0 -1 0 0 0 0 1", "Offset": "1 2 3", "CenterOfRotation": "0 0 0", "ElementSpacing": "0.7 1.3 2.9",
        "DimSize": "4 3 2", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL"}


def meta(fields, data=b""):
    fields = {**META, **fields}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    return "".join(f"{k} = {v}\n" for k, v in fields.items() if v is not None).encode() + data


by_hand("meta big endian", "a.mha", {"a.mha": meta({"BinaryDataByteOrderMSB": "True"}, big)})
by_hand("meta other names", "a.mha", {"a.mha": meta({"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True", "Offset": None, "Position": "1 2 3",
        "TransformMatrix": None, "Orientation": "0 1 0 -1 0 0 0 0 1"}, big)})
by_hand("meta text", "a.mha", {"a.mha": meta({"BinaryData": "False"}, (" ".join(map(str, VOXELS.ravel())) + "\n").encode())})
by_hand("meta zlib", "a.mha", {"a.mha": meta({"CompressedData": "True", "CompressedDataSize": len(zlib.compress(little))}, zlib.compress(little))})
by_hand("meta header of -1", "a.mhd", {"a.mhd": meta({"HeaderSize": -1, "ElementDataFile": "a.raw"}), "a.raw": b"something" + little})
by_hand("meta list", "a.mhd", {"a.mhd": meta({"ElementDataFile": "LIST"}) + b"p.raw\nq.raw\n", "p.raw": little[:24], "q.raw": little[24:]})
by_hand("meta pattern", "a.mhd", {"a.mhd": meta({"ElementDataFile": "z%02d.raw 1 2 1"}), "z01.raw": little[:24], "z02.raw": little[24:]})
by_hand("meta of 64 bits", "a.mha", {"a.mha": meta({"ElementType": "MET_LONG_LONG"}, VOXELS.astype("<i8").tobytes())})
by_hand("meta MET_LONG", "a.mha", {"a.mha": meta({"ElementType": "MET_LONG"}, VOXELS.astype("<i4").tobytes())})

# damaged, hostile, or of a sort that is not read
for name, main, data, error in [
    ("nrrd cut", "a.nrrd", nrrd({**BASE, **SPACE}, little[:-1]), "cut short"),
    ("nrrd claims much", "a.nrrd", nrrd({**BASE, **SPACE, "sizes": "65535 65535 65535"}, little), "cut short"),
    ("nrrd claims beyond 64 bits", "a.nrrd", nrrd({**BASE, **SPACE, "sizes": "4294967295 4294967295 4294967295"}, little), "too many"),
    ("nrrd gzip claims much", "a.nrrd", nrrd({**BASE, **SPACE, "sizes": "20000 20000 20000", "encoding": "gzip"}, gzip.compress(little)), ""),
    ("nrrd damaged gzip", "a.nrrd", nrrd({**BASE, **SPACE, "encoding": "gzip"}, gzip.compress(little)[:-9]), "cut short"),
    ("nrrd text cut", "a.nrrd", nrrd({**BASE, **SPACE, "encoding": "text"}, b"1 2 3"), "cut short"),
    ("nrrd text of words", "a.nrrd", nrrd({**BASE, **SPACE, "encoding": "text"}, b"one two " * 24), "is no number"),
    ("nrrd bzip2", "a.nrrd", nrrd({**BASE, **SPACE, "encoding": "bzip2"}, little), "raw, gzip and ascii are"),
    ("nrrd block", "a.nrrd", nrrd({**BASE, **SPACE, "type": "block"}, little), "are not read"),
    ("nrrd without sizes", "a.nrrd", nrrd({k: v for k, v in BASE.items() if k != "sizes"}, little), "no field \"sizes\""),
    ("nrrd without endian", "a.nrrd", nrrd({k: v for k, v in {**BASE, **SPACE}.items() if k != "endian"}, little), "endianness"),
    ("nrrd of wrong dimension", "a.nrrd", nrrd({**BASE, **SPACE, "dimension": 4}, little), "do not tell its dimension"),
    ("nrrd flat", "a.nrrd", nrrd({**BASE, **SPACE, "space directions": "(1,0,0) (1,0,0) (0,0,1)"}, little), "do not span space"),
    ("nrrd of colours", "a.nrrd", nrrd({**BASE, "sizes": "3 4 2", "kinds": "RGB-color domain domain"}, little), "kind rgb-color"),
    ("nrrd no field", "a.nrrd", b"NRRD0004\nwhat is this\n\n", "is no field"),
    ("nrrd without its file", "a.nhdr", nrrd({**BASE, **SPACE, "data file": "gone.raw"}), "there is no file"),
    ("nrrd odd pattern", "a.nhdr", nrrd({**BASE, **SPACE, "data file": "z%d.raw 1 9999999 1"}), "is no pattern"),
    ("nrrd not finite", "a.nrrd", nrrd({**BASE, **SPACE, "type": "float"}, np.full(24, np.nan, "<f4").tobytes()), "not finite"),
    ("meta cut", "a.mha", meta({}, little[:-1]), "cut short"),
    ("meta claims much", "a.mha", meta({"DimSize": "65535 65535 65535"}, little), "cut short"),
    ("meta zlib damaged", "a.mha", meta({"CompressedData": "True"}, b"no zlib at all, but long enough for it"), "damaged"),
    ("meta without data", "a.mha", b"ObjectType = Image\nNDims = 3\n", "no ElementDataFile"),
    ("meta arrays", "a.mha", meta({"ElementType": "MET_FLOAT_MATRIX"}, little), "are not read"),
    ("meta five", "a.mha", meta({"NDims": 5, "DimSize": "1 1 1 1 1"}, little), "not those of an image"),
    ("meta numbers", "a.mha", meta({"ElementSpacing": "1 x 1"}, little), "are no numbers"),
    ("meta few numbers", "a.mha", meta({"Offset": "1 2"}, little), "not 3"),
    ("meta no lines", "a.mha", b"what is this\n", "is no field"),
    ("mgh cut", "a.mgh", b"\0\0\0\1\0\0", "cut short"),
    ("mgh version", "a.mgh", b"\0\0\0\2" + bytes(400), "version 1"),
    ("mgh extent", "a.mgh", b"\0\0\0\1" + bytes(400), "at least 1"),
    ("mgh claims much", "a.mgh", b"\0\0\0\1" + b"\0\0\xff\xff" * 3 + b"\0\0\0\1\0\0\0\3" + bytes(400), "cut short"),
    ("mgh type", "a.mgh", b"\0\0\0\1" + b"\0\0\0\1" * 4 + b"\0\0\0\x09" + bytes(400), "type 9"),
    ("nifti-2 cut", "a.nii", (540).to_bytes(4, "little") + b"n+2\0" + bytes(380), "cut short"),
    ("nothing", "a.bin", b"nothing that is known to anyone", "no file of a format"),
    ("zip damaged", "a.zip", b"PK\3\4 and no more", "damaged zip"),
]:
    by_hand(name, main, {main: data}, error=error)

# NIfTI-2 and MGH by nibabel
for number, dtype in enumerate(["int16", "float64", "uint8", "int64"]):
    with tempfile.TemporaryDirectory() as folder:
        affine = np.eye(4)
        affine[:3, :3] = LPS @ (np.array(oriented(5 * number, "uint8").GetDirection()).reshape(3, 3) * [0.7, 1.3, 2.9])
        affine[:3, 3] = [1.1, -2.2, 3.3]
        header = nib.Nifti2Header(endianness="<>"[number % 2])
        image = nib.Nifti2Image(rng.integers(0, 99, (4, 3, 2)).astype(dtype), affine, header)
        if number == 2:
            image.set_sform(None, 0)
        path = os.path.join(folder, ["a.nii", "a.nii.gz"][number % 2])
        nib.save(image, path)
        case(f"nifti-2 {number}", os.path.basename(path), folder, of_nibabel(path))
for number, dtype in enumerate(["int16", "float32", "uint8", "int32"]):
    with tempfile.TemporaryDirectory() as folder:
        affine = np.eye(4)
        affine[:3, :3] = LPS @ (np.array(oriented(7 * number, "uint8").GetDirection()).reshape(3, 3) * [0.7, 1.3, 2.9])
        shape = (4, 3, 2, 3) if number == 3 else (4, 3, 2)
        path = os.path.join(folder, ["a.mgh", "a.mgz"][number % 2])
        nib.save(nib.MGHImage(rng.integers(0, 99, shape).astype(dtype), affine), path)
        case(f"mgh {number}", os.path.basename(path), folder, of_nibabel(path))


# DICOM
def slice_of(z, array, syntax=ExplicitVRLittleEndian, series="1.2.3", **more):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = more.get("SOPInstanceUID", f"{series}.{z}")
    meta.TransferSyntaxUID = syntax
    d = Dataset()
    d.file_meta = meta
    d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    d.Modality, d.SeriesInstanceUID, d.SeriesDescription, d.InstanceNumber = "CT", series, "a series", z + 1
    d.StudyInstanceUID, d.FrameOfReferenceUID = "1.2", "1.9"
    d.Rows, d.Columns = array.shape
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated = array.dtype.itemsize * 8
    d.BitsStored, d.HighBit = d.BitsAllocated, d.BitsAllocated - 1
    d.PixelRepresentation = int(array.dtype.kind == "i")
    d.ImageOrientationPatient = [1, 0, 0, 0, 0.8, 0.6]
    normal = np.cross([1, 0, 0], [0, 0.8, 0.6])
    d.ImagePositionPatient = [round(float(x), 6) for x in np.array([-7.5, 12.25, 30]) + 2.5 * z * normal]
    d.PixelSpacing, d.SliceThickness = [1.3, 0.7], 2.5
    d.RescaleSlope, d.RescaleIntercept = 1, -1024
    for key, value in more.items():
        setattr(d, key, value)
    d.PixelData = array.tobytes()
    d["PixelData"].VR = "OB" if d.BitsAllocated == 8 else "OW"
    return d


def save(d, path, endian="little"):
    syntax = d.file_meta.TransferSyntaxUID
    d.save_as(path, enforce_file_format=True)


def of_series(folder):
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    return of_image(reader.Execute())


def planes(n=4, dtype="int16", low=0, high=2000, shape=(6, 8)):
    return [rng.integers(low, high, shape).astype(dtype) for _ in range(n)]


def dicom(name, slices, reader=of_series, main="", change=None, **more):
    with tempfile.TemporaryDirectory() as folder:
        order = rng.permutation(len(slices))
        for at, i in enumerate(order):
            d = slices[i]
            if d is not None:
                save(d, os.path.join(folder, f"IM{at:03d}"))
        if change:
            change(folder)
        expected = None if "error" in more else reader(folder)
        case(name, main, folder, expected, **more)


# in every permutation and flip of the patient: all 48, of which half are of left-handed images that DICOM has not
for number in range(48):
    order = list(itertools.permutations(range(3)))[number % 6]
    signs = [1 if number // 6 >> axis & 1 else -1 for axis in range(3)]
    matrix = np.zeros((3, 3))
    for axis in range(3):
        matrix[order[axis], axis] = signs[axis]
    if np.linalg.det(matrix) < 0:
        continue
    slices = []
    for z, plane in enumerate(planes(2, shape=(2, 3))):
        d = slice_of(z, plane)
        d.ImageOrientationPatient = list(matrix[:, 0]) + list(matrix[:, 1])
        d.ImagePositionPatient = list(np.array([1.0, 2, 3]) + 2.5 * z * matrix[:, 2])
        slices.append(d)
    dicom(f"dicom orientation {number}", slices)

dicom("dicom explicit", [slice_of(z, p) for z, p in enumerate(planes())])
dicom("dicom implicit", [slice_of(z, p, ImplicitVRLittleEndian) for z, p in enumerate(planes())])
dicom("dicom deflated", [slice_of(z, p, DeflatedExplicitVRLittleEndian) for z, p in enumerate(planes())])
dicom("dicom 8 bits", [slice_of(z, p) for z, p in enumerate(planes(dtype="uint8", high=255))])
dicom("dicom 16 bits", [slice_of(z, p) for z, p in enumerate(planes(dtype="uint16", high=65535))])
dicom("dicom 12 bits signed", [slice_of(z, (p & 0xFFF).astype("uint16"), BitsStored=12, HighBit=11, PixelRepresentation=1)
                               for z, p in enumerate(planes(low=-2000))])
def by_pydicom(folder):
    """Positions and values by pydicom, slices along the normal."""
    found = []
    for name in os.listdir(folder):
        d = pydicom.dcmread(os.path.join(folder, name))
        row, column = np.array(d.ImageOrientationPatient[:3], float), np.array(d.ImageOrientationPatient[3:], float)
        p = np.array(d.ImagePositionPatient, float)
        values = d.pixel_array.astype(float) * float(d.RescaleSlope) + float(d.RescaleIntercept)
        found.append((p @ np.cross(row, column), p, row, column, np.array(d.PixelSpacing, float), values))
    found.sort(key=lambda f: f[0])
    _, first, row, column, spacing, _ = found[0]
    step = (found[-1][1] - first) / (len(found) - 1)
    steps = np.array([step, column * spacing[0], row * spacing[1]]) @ LPS
    return dict(values=np.array([f[5] for f in found]).ravel().tolist(), steps=steps.tolist(), origin=(LPS @ first).tolist(),
                spacing=np.linalg.norm(steps, axis=1).tolist())


dicom("dicom rescale of each slice", [slice_of(z, p, RescaleSlope=0.5 + z, RescaleIntercept=-3.25) for z, p in enumerate(planes())],
      reader=by_pydicom)


def compressed(name, syntax, **more):
    slices = []
    for z, p in enumerate(planes(2, shape=(32, 40))):
        d = slice_of(z, p)
        d.compress(syntax, generate_instance_uid=False)
        slices.append(d)
    dicom(name, slices, **more)


compressed("dicom RLE", RLELossless)
compressed("dicom JPEG 2000", JPEG2000Lossless)


def tilted():
    slices = []
    for z, p in enumerate(planes()):
        d = slice_of(z, p)
        d.ImageOrientationPatient, d.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0.5 * z, 2.5 * z]
        slices.append(d)
    return slices


dicom("dicom gantry tilt", tilted(), reader=by_pydicom, warning="gantry tilt")
dicom("dicom MONOCHROME1", [slice_of(z, p, PhotometricInterpretation="MONOCHROME1") for z, p in enumerate(planes())], warning="MONOCHROME1")
dicom("dicom with a localizer", [slice_of(z, p) for z, p in enumerate(planes())] + [slice_of(9, planes(1, shape=(3, 3))[0])],
      reader=lambda folder: None, warning="are passed over")
again = planes()
dicom("dicom twice the same file", [slice_of(z, p) for z, p in [*enumerate(again), (1, again[1])]], reader=lambda folder: None, warning="passed over")
uneven = [slice_of(z, p) for z, p in enumerate(planes(5))]
uneven[2].ImagePositionPatient = [a + 0.3 * (b - a) / 2.5 for a, b in zip(uneven[2].ImagePositionPatient, uneven[3].ImagePositionPatient)]
dicom("dicom uneven", uneven, reader=by_pydicom, warning="not evenly apart")
dicom("dicom gap", [slice_of(z, p) for z, p in zip([0, 1, 2, 4, 5], planes(5))], error="images are missing")
dicom("dicom two volumes", [slice_of(z, p, SOPInstanceUID=f"1.2.3.{t}.{z}") for t in range(2) for z, p in enumerate(planes())], error="lie in one place")
dicom("dicom one place", [slice_of(0, p, SOPInstanceUID=f"1.2.3.{t}") for t, p in enumerate(planes())], error="all 4 images")
dicom("dicom two series", [slice_of(z, p, series=f"1.2.{s}") for s in (5, 6) for z, p in enumerate(planes(2))], error="2 series are there")
dicom("dicom as many of another extent", [slice_of(z, p) for z, p in enumerate(planes(2) + planes(2, shape=(3, 3)))], error="separate them")
dicom("dicom colours", [slice_of(0, planes(1)[0], PhotometricInterpretation="PALETTE COLOR")], error="images of colours")


def without(tag):
    d = slice_of(0, planes(1)[0])
    delattr(d, tag)
    return [d]


dicom("dicom without a position", without("ImagePositionPatient"), error="where it lies")
dicom("dicom without rows", without("Rows"), error="rows")
dicom("dicom claims much", [slice_of(0, planes(1)[0], Rows=60000, Columns=60000)], error="but holds")
dicom("dicom of 24 bits", [slice_of(0, planes(1)[0], BitsAllocated=24)], error="are not read")


def cut(folder):
    path = os.path.join(folder, "IM000")
    data = open(path, "rb").read()
    open(path, "wb").write(data[:-20])


def long_name(folder):
    path = os.path.join(folder, "IM000")
    data = bytearray(open(path, "rb").read())
    at = data.index(b"\x08\x00\x3e\x10LO")
    data[at + 4:at + 8] = b"UT\0\0"
    data[at + 8:at + 12] = (0xFFFFFFF0).to_bytes(4, "little")
    open(path, "wb").write(data)


dicom("dicom cut", [slice_of(z, p) for z, p in enumerate(planes(1))], change=cut, error="claims 96 bytes")
dicom("dicom long element", [slice_of(z, p) for z, p in enumerate(planes(1))], change=long_name, error="claims 4294967280 bytes")
with tempfile.TemporaryDirectory() as folder:
    open(os.path.join(folder, "notes.txt"), "w").write("no images here")
    case("folder without images", "", folder, error="there are no DICOM images")


def encoded_as_another(syntax, error, change=None):
    d = slice_of(0, planes(1, shape=(32, 40))[0])
    d.compress(RLELossless, generate_instance_uid=False)
    d.file_meta.TransferSyntaxUID = syntax
    dicom(f"dicom {syntax} damaged", [d], error=error)


encoded_as_another(JPEGLSLossless, "are not read")
encoded_as_another(JPEG2000Lossless, "cannot be decoded")
encoded_as_another("1.2.840.10008.1.2.4.70", "cannot be decoded")
d = slice_of(0, planes(1, shape=(32, 40))[0])
d.compress(JPEG2000Lossless, generate_instance_uid=False)
d.Rows, d.Columns = 40, 32
dicom("dicom JPEG 2000 of another extent", [d], error="image of 32x40 voxels")


# an enhanced object of several frames, out of order
def enhanced(n=4, twice=False):
    d = slice_of(0, np.concatenate(planes(n)))
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    d.Rows, d.NumberOfFrames = 6, n
    measures, orientation, transform = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = d.PixelSpacing, 2.5
    orientation.ImageOrientationPatient = d.ImageOrientationPatient
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in [2, 0, 3, 1][:n]:
        position, transform, frame = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = slice_of(0 if twice else z, planes(1)[0]).ImagePositionPatient
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 2, z, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([position]), Sequence([transform])
        frames.append(frame)
    d.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for name in ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept"]:
        delattr(d, name)
    return d


def of_enhanced(folder):
    d = pydicom.dcmread(os.path.join(folder, "IM000"))
    order = np.argsort([2, 0, 3, 1])
    values = np.array([d.pixel_array[i] * 2.0 + [2, 0, 3, 1][i] for i in order])
    flat = [slice_of(z, planes(1)[0]) for z in range(4)]
    row, column = np.array(flat[0].ImageOrientationPatient[:3], float), np.array(flat[0].ImageOrientationPatient[3:], float)
    positions = [np.array(f.ImagePositionPatient, float) for f in flat]
    steps = np.array([(positions[-1] - positions[0]) / 3, column * 1.3, row * 0.7]) @ LPS
    return dict(values=values.ravel().tolist(), steps=steps.tolist(), origin=(LPS @ positions[0]).tolist(), spacing=np.linalg.norm(steps, axis=1).tolist())


dicom("dicom enhanced", [enhanced()], reader=of_enhanced)
dicom("dicom enhanced of one place", [enhanced(twice=True)], error="all 4 images")
d = enhanced()
d.PerFrameFunctionalGroupsSequence = d.PerFrameFunctionalGroupsSequence[:3]
dicom("dicom enhanced of too few places", [d], error="where its 4 frames lie")

# a zip archive of a series, with other files in it
with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as inner:
    for z, p in enumerate(planes()):
        save(slice_of(z, p), os.path.join(inner, f"IM{3 - z}"))
    with zipfile.ZipFile(os.path.join(folder, "a.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("study/readme.txt", "no image")
        for name in os.listdir(inner):
            archive.write(os.path.join(inner, name), f"study/series/{name}")
    case("dicom zip", "a.zip", folder, of_series(inner))
with tempfile.TemporaryDirectory() as folder:
    save(slice_of(0, planes(1)[0]), os.path.join(folder, "a.dcm"))
    # its thickness stands for the distance to the next, which SimpleITK takes for 1
    case("dicom single image", "a.dcm", folder, warning="is a single image")

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vectors", "formats.json")
json.dump(cases, open(here, "w"), separators=(",", ":"))
print(len(cases), "cases,", os.path.getsize(here), "bytes")
