"""How large the simulated data set is, and what it says of itself."""

SEED = 73                       # of the stimuli's scenes; the models were trained on others
SIDE = 425                      # px, as NSD
VOXEL = 1.8                     # mm
TRIALS = 750                    # a session, as NSD
SESSIONS = {"subj01": 4, "subj02": 2}
IMAGES = 1060                   # a subject's images; NSD: 10,000
SHARED = 130                    # of them, seen by every subject; NSD: 1,000
UNSEEN = 20                     # images that nobody saw
REPEATS = 3
RUNS = 12                       # a session, as NSD
DIFFICULTY = {"easy": 0.5, "default": 1.0, "hard": 2.0}         # factors on the noise
DEPTH_SIDE = 96                 # px of the true depth maps
WORKERS = 2
CAPTIONS = 5                    # an image, as COCO
MORE_CAPTIONS = {7: 6, 57: 7}   # of a hundred images these two have more, as some of COCO's do
STRAY = (" {}", "{} ", "{}\n")  # blanks around every seventh image's captions, such as COCO's have
RESPONSES = ("SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND MEMORYRECENT MEMORYFIRST "
             "ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON MISSINGDATA").split()
BETAS = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
MARKER = "simulated/world.json"
NOTICE = """SIMULATED DATA

Everything below this folder is simulated by mini_nsd (python -m mini_nsd.build). It follows the file formats of the
Natural Scenes Dataset so that a pipeline can be exercised end to end, and holds nothing of it: the pictures are
rendered, the captions generated, the subjects and their behaviour made up, the "betas" computed by a forward model with
noise. Do not report results from it as findings about brains. The folder simulated/ holds the ground truth; the
options that this world was built with are in simulated/world.json.
"""


def for_writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
